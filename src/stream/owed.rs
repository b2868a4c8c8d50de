//! [`OwedCommits`]: acks that were accepted, and that their group has not taken yet.
//!
//! A partition can go before the acks for it are committed: the group gave its member up unheard, or refused the
//! commit. Whoever of this process's sessions gets the partition next starts behind those acks, not behind the commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::kafka::Partition;

/// How long an ack is owed. A member comes back within seconds; somebody who moves a group's commit back by hand must
/// not find it moved forward again much later.
const OWED_FOR: Duration = Duration::from_secs(60);

/// What the group does not know of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    /// The partition, with the offset after the last acked message.
    pub partition: Partition,
    /// What the group is known to have committed. With an earlier commit, or none, somebody has moved the group back or made
    /// the topic anew: then nothing is owed.
    pub committed: Option<i64>,
}

/// By group, topic and partition: the debt, and since when.
#[derive(Default)]
pub struct OwedCommits(Mutex<HashMap<Key, (Debt, Instant)>>);

type Key = (Arc<str>, Arc<str>, i32);

fn key(group: &str, partition: &Partition) -> Key {
    (group.into(), partition.topic.clone(), partition.partition)
}

impl OwedCommits {
    /// These acks are not committed, and their partitions go.
    pub fn owe(&self, group: &str, debts: Vec<Debt>) {
        let mut owed = self.0.lock();
        owed.retain(|_, (_, since)| since.elapsed() < OWED_FOR);
        for debt in debts {
            let entry = owed.entry(key(group, &debt.partition));
            let (known, since) = entry.or_insert((debt.clone(), Instant::now()));
            if known.partition.offset < debt.partition.offset {
                *known = debt;
            }
            *since = Instant::now();
        }
    }

    /// `partitions` are committed up to their offsets.
    pub fn settle(&self, group: &str, partitions: &[Partition]) {
        let mut owed = self.0.lock();
        if owed.is_empty() {
            return;
        }
        for partition in partitions {
            let key = key(group, partition);
            if owed.get(&key).is_some_and(|(debt, _)| partition.offset >= debt.partition.offset) {
                owed.remove(&key);
            }
        }
    }

    /// Nothing is owed to `group` of `topics`: one of them is gone, and what has its name next is another one.
    pub fn forget(&self, group: &str, topics: &[Arc<str>]) {
        self.0.lock().retain(|(of, topic, _), _| **of != *group || !topics.contains(topic));
    }

    /// Those of `partitions` for which acks are owed.
    pub fn of(&self, group: &str, partitions: &[Partition]) -> Vec<Debt> {
        let owed = self.0.lock();
        if owed.is_empty() {
            return Vec::new();
        }
        let debt_of = |partition: &Partition| {
            let (debt, since) = owed.get(&key(group, partition))?;
            (since.elapsed() < OWED_FOR).then(|| debt.clone())
        };
        partitions.iter().filter_map(debt_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_the_furthest_until_it_is_settled() {
        let owed = OwedCommits::default();
        let at = |offset| Partition::new("t".into(), 0, Some(offset));
        let debt = |offset| vec![Debt { partition: at(offset), committed: None }];
        let next =
            |group: &str| owed.of(group, &[at(0)]).first().and_then(|debt| debt.partition.offset);
        assert_eq!(next("g"), None);
        owed.owe("g", debt(5));
        owed.owe("g", debt(3));
        assert_eq!((next("g"), next("h")), (Some(5), None));
        owed.settle("h", &[at(9)]);
        owed.settle("g", &[at(4)]);
        assert_eq!(next("g"), Some(5));
        owed.settle("g", &[at(5)]);
        assert_eq!(next("g"), None);
        owed.owe("g", debt(5));
        owed.forget("h", &["t".into()]);
        owed.forget("g", &["other".into()]);
        assert_eq!(next("g"), Some(5));
        owed.forget("g", &["t".into()]);
        assert_eq!(next("g"), None);
    }
}
