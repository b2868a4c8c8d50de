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

/// By group, topic and partition: the offset after the last acked message, and when it was owed.
#[derive(Default)]
pub struct OwedCommits(Mutex<HashMap<Key, (i64, Instant)>>);

type Key = (Arc<str>, Arc<str>, i32);

fn key(group: &str, partition: &Partition) -> Key {
    (group.into(), partition.topic.clone(), partition.partition)
}

impl OwedCommits {
    /// The acks of `partitions` are not committed, and their partitions go.
    pub fn owe(&self, group: &str, partitions: &[Partition]) {
        let mut owed = self.0.lock();
        owed.retain(|_, (_, since)| since.elapsed() < OWED_FOR);
        for partition in partitions {
            let Some(next) = partition.offset else { continue };
            let key = key(group, partition);
            let entry = owed.entry(key).or_insert((next, Instant::now()));
            *entry = (entry.0.max(next), Instant::now());
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
            if owed.get(&key).is_some_and(|(next, _)| partition.offset >= Some(*next)) {
                owed.remove(&key);
            }
        }
    }

    /// Those of `partitions` for which acks are owed, each with the offset after them.
    pub fn of(&self, group: &str, partitions: &[Partition]) -> Vec<Partition> {
        let owed = self.0.lock();
        if owed.is_empty() {
            return Vec::new();
        }
        let owed_of = |partition: &Partition| {
            let key = key(group, partition);
            let (next, _) = owed.get(&key).filter(|(_, since)| since.elapsed() < OWED_FOR)?;
            Some(Partition::new(partition.topic.clone(), partition.partition, Some(*next)))
        };
        partitions.iter().filter_map(owed_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_the_furthest_until_it_is_settled() {
        let owed = OwedCommits::default();
        let at = |offset| [Partition::new("t".into(), 0, offset)];
        let next =
            |group: &str| owed.of(group, &at(None)).first().and_then(|partition| partition.offset);
        assert_eq!(next("g"), None);
        owed.owe("g", &at(Some(5)));
        owed.owe("g", &at(Some(3)));
        owed.owe("g", &at(None));
        assert_eq!((next("g"), next("h")), (Some(5), None));
        owed.settle("h", &at(Some(9)));
        owed.settle("g", &at(Some(4)));
        owed.settle("g", &at(None));
        assert_eq!(next("g"), Some(5));
        owed.settle("g", &at(Some(5)));
        assert_eq!(next("g"), None);
    }
}
