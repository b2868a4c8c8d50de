//! A session's task: serves its consumer's events, rebalances above all, and sees to it that acks are committed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Session;
use super::state::{Assigned, Phase};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::consumer::{CommitError, ConsumerEvent, GroupConsumer};
use crate::stream::acks::Position;
use crate::stream::owed::Debt;

/// Deadline of one request while the start of a partition is looked up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Deadline of the look for the beginnings of partitions without a commit.
const BEGINNING_TIMEOUT: Duration = Duration::from_secs(2);

/// Deadline of the look whether a topic is still missing; the session serves nothing else meanwhile.
const MISSING_TIMEOUT: Duration = Duration::from_secs(2);

/// Failures of one session are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How often a consumer that leaves tries to commit while its group rebalances.
const FAREWELL_TRIES: usize = 10;

/// Time between these tries.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(100);

/// How long the start of a partition may stay unknown before the consumer is given up.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(60);

impl Session {
    /// The session's task: serves the consumer until the session closes, its client falls silent, or the
    /// consumer dies.
    pub(super) async fn serve(&self, consumer: Arc<GroupConsumer>) {
        let mut closing = self.closing.subscribe();
        let max_poll = self.options.max_poll_interval;
        let tick = (max_poll / 8).clamp(Duration::from_millis(20), Duration::from_secs(30));
        let mut last_seen = Instant::now();
        self.is_stale.store(false, Ordering::Relaxed);
        let end = loop {
            let mut end = None;
            while end.is_none()
                && let Some(event) = consumer.next_event()
            {
                end = self.handle(&consumer, event).await;
            }
            if let Some(end) = end {
                break end;
            }
            if self.is_stale.load(Ordering::Relaxed) {
                break End::Rejoin;
            }
            let patience = self.watch_commit(&consumer).map_or(tick, |due| due.min(tick));
            tokio::select! {
                () = self.events.notified() => {}
                _ = closing.wait_for(|closing| *closing) => break End::Closed,
                () = tokio::time::sleep(patience) => {}
            }
            if self.touched.swap(false, Ordering::Relaxed)
                || self.blocked.load(Ordering::Relaxed) > 0
            {
                last_seen = Instant::now();
            } else if last_seen.elapsed() >= max_poll {
                break End::Silent;
            }
        };
        self.leave(&consumer, end).await;
    }

    async fn leave(&self, consumer: &Arc<GroupConsumer>, end: End) {
        let farewell = {
            let mut state = self.state.lock();
            state.clear();
            std::mem::take(&mut state.farewell)
        };
        let positions = farewell.iter().map(|debt| debt.partition.clone()).collect();
        self.owed.owe(self.name.group(), farewell);
        let (closed, deadline) = (consumer.clone(), self.options.session_timeout);
        let closing = tokio::task::spawn_blocking(move || {
            let mut commits = commit_before_leaving(&closed, positions);
            commits.extend(closed.close(deadline));
            commits
        });
        for committed in closing.await.unwrap_or_default() {
            self.committed(committed);
        }
        let mut state = self.state.lock();
        if state.phase == Phase::Live {
            state.phase = Phase::Dormant;
        }
        match end {
            End::Closed | End::Rejoin => {}
            End::Silent => {
                tracing::info!(name = %self.name.full(), "a silent client has left its group");
            }
            End::Fatal(error) => {
                tracing::error!(name = %self.name.full(), %error, "consumer failed");
                state.error = Some(error);
            }
        }
        state.consumer = None;
        // Under the lock: whoever finds the session dormant may let it join again, which sets this anew.
        self.running.send_replace(false);
    }

    /// Returns why the consumer is of no use any more, if so.
    async fn handle(&self, consumer: &Arc<GroupConsumer>, event: ConsumerEvent) -> Option<End> {
        let name = self.name.full();
        match event {
            ConsumerEvent::Assigned(partitions) => {
                self.metrics.rebalances.with_label_values(&["assigned"]).inc();
                let (partitions, owed) = match self.with_starts(consumer, partitions).await {
                    Ok(Some(starts)) => starts,
                    Ok(None) => return Some(End::Rejoin),
                    Err(error) => return Some(End::Fatal(error)),
                };
                tracing::debug!(%name, ?partitions, ?owed, "assigned");
                if let Err(error) = self.assign(consumer, &partitions, &owed) {
                    tracing::warn!(%name, %error, "assign");
                    return Some(End::Rejoin);
                }
                self.find_missing(consumer).await;
            }
            ConsumerEvent::Revoked { partitions, lost } => {
                let kind = if lost { "lost" } else { "revoked" };
                self.metrics.rebalances.with_label_values(&[kind]).inc();
                tracing::debug!(%name, ?partitions, lost, "revoked");
                let mut state = self.state.lock();
                // Settled by the commit that comes with the next line, unless it fails, or they are lost.
                self.owed.owe(self.name.group(), state.revoke(&partitions));
                // Eager protocols take all away before they give; the others say what changes.
                state.is_settled &= consumer.is_cooperative();
                if let Err(error) = consumer.unassign(&partitions) {
                    tracing::warn!(%name, %error, "unassign");
                }
            }
            ConsumerEvent::Committed(result) => self.committed(result),
            ConsumerEvent::TopicMissing(text) => {
                let mut state = self.state.lock();
                for topic in &self.topics {
                    if text.contains(&format!(" {topic}:")) && state.missing.insert(topic.clone()) {
                        tracing::warn!(%name, %topic, "a subscribed topic does not exist");
                    }
                }
                drop(state);
                self.ready.notify_one();
            }
            ConsumerEvent::Failed(error) => {
                self.log_once("consumer", &error);
                // A broker that is away is librdkafka's business: it comes back, or the pop times out.
                if error.kind() != ErrorKind::Unavailable {
                    self.state.lock().error = Some(error);
                    self.ready.notify_one();
                }
            }
            ConsumerEvent::Fatal(error) => return Some(End::Fatal(error)),
        }
        None
    }

    /// Looks whether topics that were missing are there by now: their partitions may have gone to other members. The
    /// group divides anew when one appears, so that this is the moment.
    async fn find_missing(&self, consumer: &Arc<GroupConsumer>) {
        let missing = self.missing();
        if missing.is_empty() {
            return;
        }
        let consumer = consumer.clone();
        let look = move || -> Result<Vec<Arc<str>>> {
            let mut found = Vec::new();
            for topic in missing {
                if consumer.partition_count(&topic, MISSING_TIMEOUT)? > 0 {
                    found.push(topic);
                }
            }
            Ok(found)
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(found)) => {
                let mut state = self.state.lock();
                state.missing.retain(|topic| !found.contains(topic));
            }
            Ok(Err(error)) => tracing::debug!(name = %self.name.full(), %error, "missing topics"),
            Err(error) => tracing::error!(%error, "missing topics"),
        }
    }

    /// Commits what librdkafka has left uncommitted for too long; returns when to look again.
    fn watch_commit(&self, consumer: &GroupConsumer) -> Option<Duration> {
        let allowed = self.options.commit_interval * 3 / 2;
        let mut state = self.state.lock();
        let waited = state.uncommitted_since?.elapsed();
        if waited < allowed {
            return Some(allowed - waited);
        }
        let late = state.uncommitted();
        if late.is_empty() {
            state.uncommitted_since = None;
            return None;
        }
        if let Err(error) = consumer.send_commit(&late) {
            tracing::debug!(name = %self.name.full(), %error, "commit");
        }
        state.uncommitted_since = Some(Instant::now());
        Some(allowed)
    }

    fn committed(&self, result: Result<Vec<Partition>>) {
        let outcome = if result.is_ok() { "ok" } else { "error" };
        self.metrics.commits.with_label_values(&[outcome]).inc();
        let partitions = match result {
            Ok(partitions) => partitions,
            Err(error) => {
                if error.kind() == ErrorKind::NotFound {
                    self.owed.forget(self.name.group(), &self.topics);
                }
                return self.log_once("commit", &error);
            }
        };
        self.owed.settle(self.name.group(), &partitions);
        let mut state = self.state.lock();
        for partition in &partitions {
            if let Some(index) = state.find(&partition.topic, partition.partition)
                && let Some(assigned) = state.partitions.get_mut(index)
            {
                assigned.committed = assigned.committed.max(partition.offset);
            }
        }
        let is_done = |assigned: &Assigned| assigned.position.acked <= assigned.committed;
        let done = state.partitions.iter().all(is_done);
        // What was acked while the commit was under way has its own interval.
        state.uncommitted_since = (!done).then(Instant::now);
    }

    /// Logs a failure, at most once in a while.
    pub(super) fn log_once(&self, what: &str, error: &Error) {
        let mut state = self.state.lock();
        if state.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            tracing::warn!(name = %self.name.full(), %error, "{what}");
            state.logged = Some(Instant::now());
        }
    }

    /// `owed` are those of `partitions` that begin behind acks which are still to be committed.
    fn assign(
        &self,
        consumer: &GroupConsumer,
        partitions: &[Partition],
        owed: &[Partition],
    ) -> Result<()> {
        let mut state = self.state.lock();
        if state.queue.is_none() {
            return Ok(()); // Closing; the task is told next.
        }
        let since = state.generation;
        for partition in partitions {
            let topic = &*partition.topic;
            state.missing.remove(topic);
            state.partitions.push(Assigned {
                topic: partition.topic.clone(),
                topic_id: None,
                since,
                partition: partition.partition,
                position: Position::default(),
                committed: None,
                consumed: (
                    self.metrics.consumed_messages.with_label_values(&[topic]),
                    self.metrics.consumed_bytes.with_label_values(&[topic]),
                ),
            });
        }
        state.is_settled = true;
        // Under the lock, so that no message comes from a partition that is not in the table.
        consumer.assign(partitions)?;
        if !owed.is_empty() {
            consumer.store(owed)?;
            for partition in owed {
                if let Some(index) = state.find(&partition.topic, partition.partition)
                    && let Some(assigned) = state.partitions.get_mut(index)
                {
                    assigned.position.acked = partition.offset;
                }
            }
            state.uncommitted_since = Some(Instant::now());
        }
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Gives each of `partitions` its start as a number, see `kafka/consumer.rs`: the group's commit, or what lies behind acks
    /// that the group was never told of, see [`OwedCommits`](crate::stream::owed::OwedCommits), or else by
    /// `auto.offset.reset`. Those that begin behind owed acks are returned once more.
    ///
    /// `None` if the group has moved on: these partitions may not be offered again, so the consumer has to start over.
    async fn with_starts(
        &self,
        consumer: &Arc<GroupConsumer>,
        partitions: Vec<Partition>,
    ) -> Result<Option<(Vec<Partition>, Vec<Partition>)>> {
        if partitions.is_empty() {
            return Ok(Some((partitions, Vec::new())));
        }
        let mut asked: Option<(Vec<Debt>, Vec<Start>)> = None;
        loop {
            let registry = self.registry.upgrade();
            let some_had_them =
                registry.is_some_and(|registry| registry.hand_over(self, &partitions));
            let owed = self.owed.of(self.name.group(), &partitions);
            // Whoever had them may have acked, and committed, while the group was asked: then its answer is old.
            if let Some((known, starts)) = asked.take()
                && !some_had_them
                && known == owed
            {
                return Ok(Some(self.behind_owed(starts, &owed)));
            }
            let Some(starts) = self.resolve(consumer, &partitions).await? else {
                return Ok(None);
            };
            asked = Some((owed, starts));
        }
    }

    /// Lets those of `starts` that lie before acks which the group was never told of begin behind them; returns these once
    /// more.
    fn behind_owed(&self, starts: Vec<Start>, owed: &[Debt]) -> (Vec<Partition>, Vec<Partition>) {
        let commit = |Start { partition, committed }: &Start| {
            Partition::new(partition.topic.clone(), partition.partition, *committed)
        };
        let commits: Vec<Partition> = starts.iter().map(commit).collect();
        self.owed.settle(self.name.group(), &commits);
        let mut behind = Vec::new();
        let begin = |Start { mut partition, committed }: Start| {
            let debt = owed.iter().find(|debt| is_same(&debt.partition, &partition));
            let is_before =
                |debt: &&Debt| (debt.committed..debt.partition.offset).contains(&committed);
            if let Some(debt) = debt.filter(is_before) {
                partition.offset = debt.partition.offset;
                behind.push(partition.clone());
            }
            partition
        };
        (starts.into_iter().map(begin).collect(), behind)
    }

    /// Asks the group, and where it has no commit the brokers, where `partitions` start. With `auto.offset.reset=latest` a
    /// start that is no commit is committed: a restart before the first ack would else pass over what came meanwhile. `None`
    /// if the group has moved on.
    async fn resolve(
        &self,
        consumer: &Arc<GroupConsumer>,
        partitions: &[Partition],
    ) -> Result<Option<Vec<Start>>> {
        let began = Instant::now();
        loop {
            let known: Option<Vec<(Arc<str>, Option<i32>)>> = self
                .known
                .get()
                .map(|known| self.topics.iter().cloned().zip(known.iter().copied()).collect());
            let is_earliest = self.options.starts_at_beginning;
            let (consumer, wanted) = (consumer.clone(), partitions.to_vec());
            let look_up = move || match known {
                Some(known) => latest_starts(&consumer, &known, &wanted),
                None => earliest_starts(&consumer, is_earliest, &wanted),
            };
            let resolved = tokio::task::spawn_blocking(look_up).await.unwrap_or_else(|error| {
                Err(CommitError::Failed(Error::new(ErrorKind::Internal, error.to_string())))
            });
            match resolved {
                Ok(starts) => return Ok(Some(starts)),
                Err(CommitError::GroupMovedOn) => return Ok(None),
                Err(CommitError::Failed(error)) => {
                    tracing::warn!(name = %self.name.full(), %error, "cannot tell where to start");
                    if *self.closing.borrow() || began.elapsed() > RESOLVE_PATIENCE {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}

/// Where a partition begins.
struct Start {
    /// The partition with its start; without one librdkafka has to find it.
    partition: Partition,
    /// What the group has committed.
    committed: Option<i64>,
}

fn is_same(a: &Partition, b: &Partition) -> bool {
    a.partition == b.partition && a.topic == b.topic
}

enum End {
    Closed,
    Silent,
    /// The next pop, or the one that waits, starts a new consumer.
    Rejoin,
    Fatal(Error),
}

/// Commits what closing would commit as well, but once only: a coordinator refuses commits for a moment while it
/// completes a rebalance, and the acks would be lost.
fn commit_before_leaving(
    consumer: &GroupConsumer,
    positions: Vec<Partition>,
) -> Vec<Result<Vec<Partition>>> {
    if positions.is_empty() {
        return Vec::new();
    }
    for _ in 0..FAREWELL_TRIES {
        match consumer.commit(&positions) {
            Ok(()) => return vec![Ok(positions)],
            Err(CommitError::GroupMovedOn) => std::thread::sleep(FAREWELL_INTERVAL),
            Err(CommitError::Failed(error)) => return vec![Err(error)],
        }
    }
    Vec::new()
}

/// At the group's commits.
fn committed_starts(
    consumer: &GroupConsumer,
    wanted: &[Partition],
) -> Result<Vec<Start>, CommitError> {
    let found = consumer.committed(wanted, RESOLVE_TIMEOUT).map_err(CommitError::Failed)?;
    let start = |partition: Partition| Start { committed: partition.offset, partition };
    Ok(found.into_iter().map(start).collect())
}

/// At the commits, or, with `is_earliest`, at the beginnings.
fn earliest_starts(
    consumer: &GroupConsumer,
    is_earliest: bool,
    wanted: &[Partition],
) -> Result<Vec<Start>, CommitError> {
    let mut starts = committed_starts(consumer, wanted)?;
    let without: Vec<Partition> = starts
        .iter()
        .filter(|start| start.committed.is_none())
        .map(|start| start.partition.clone())
        .collect();
    if !is_earliest || without.is_empty() {
        return Ok(starts);
    }
    match consumer.beginnings(&without, BEGINNING_TIMEOUT) {
        Ok(found) => {
            for start in starts.iter_mut().filter(|start| start.committed.is_none()) {
                let beginning = found.iter().find(|found| is_same(found, &start.partition));
                start.partition.offset = beginning.and_then(|found| found.offset);
            }
        }
        // The others need not wait for a leader that is away: librdkafka goes on asking for it.
        Err(error) => tracing::debug!(%error, "beginnings"),
    }
    Ok(starts)
}

/// At the commits, or at the ends (of partitions that are newer than the session: at their beginnings), which are
/// committed. `known` is how many partitions each topic had when the session began.
fn latest_starts(
    consumer: &GroupConsumer,
    known: &[(Arc<str>, Option<i32>)],
    wanted: &[Partition],
) -> Result<Vec<Start>, CommitError> {
    let mut starts = committed_starts(consumer, wanted)?;
    let mut resolved = Vec::new();
    for Start { partition, committed } in
        starts.iter_mut().filter(|start| start.committed.is_none())
    {
        let (first, next) = consumer
            .offsets(&partition.topic, partition.partition, RESOLVE_TIMEOUT)
            .map_err(CommitError::Failed)?;
        let count =
            known.iter().find(|(topic, _)| *topic == partition.topic).and_then(|(_, count)| *count);
        let is_new = count.is_some_and(|count| partition.partition >= count);
        *committed = Some(if is_new { first } else { next });
        partition.offset = *committed;
        resolved.push(partition.clone());
    }
    if !resolved.is_empty() {
        consumer.commit(&resolved)?;
    }
    Ok(starts)
}
