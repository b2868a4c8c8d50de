//! [`Registry`]: which client names have a session, and which consumers are still leaving under a name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::owed::OwedCommits;
use super::session::{Session, SessionName, SessionView};
use crate::config::KafkaOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::options::ConsumerOptions;
use crate::kafka::producer::check_topic_name;
use crate::metrics::Metrics;

/// Sessions by name. A look-up has no side effect.
pub struct Registry {
    options: KafkaOptions,
    metrics: Arc<Metrics>,
    owed: Arc<OwedCommits>,
    names: Mutex<HashMap<Arc<str>, Entry>>,
}

/// What a name stands for.
#[derive(Default)]
struct Entry {
    session: Option<Arc<Session>>,
    /// Becomes true when the last consumer under this name has left its group.
    left: Option<watch::Receiver<bool>>,
}

/// A session together with the right to end it; the connection that owns it holds this.
pub struct Lease {
    registry: Arc<Registry>,
    session: Arc<Session>,
    runtime: tokio::runtime::Handle,
}

impl Registry {
    /// An empty registry whose sessions take `options` (the configuration's consumer section).
    pub fn new(options: KafkaOptions, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { options, metrics, owed: Arc::default(), names: Mutex::default() })
    }

    /// The session that has this name now.
    pub fn session(&self, name: &str) -> Option<Arc<Session>> {
        self.names.lock().get(name).and_then(|entry| entry.session.clone())
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.names.lock().values().filter(|entry| entry.session.is_some()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many topics are missing to sessions, each counted for each session.
    pub fn missing(&self) -> usize {
        self.all().iter().map(|session| session.missing().len()).sum()
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.names.lock().values().filter_map(|entry| entry.session.clone()).collect()
    }

    /// A snapshot of all sessions, in the order of their names.
    pub fn sessions(&self) -> Vec<SessionView> {
        let mut views: Vec<SessionView> = self.all().iter().map(|session| session.view()).collect();
        views.sort_by(|a, b| a.name.full().cmp(b.name.full()));
        views
    }

    /// Takes `name` for a new session on `topics`; the caller then lets it [`join`](Lease::join).
    ///
    /// # Errors
    /// The name has a session already ([`ErrorKind::Conflict`]), a topic's name is illegal, or an option of
    /// `asked` is not allowed.
    pub fn claim(
        self: &Arc<Self>,
        name: SessionName,
        topics: Vec<Arc<str>>,
        asked: &Map<String, Value>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Lease> {
        for topic in &topics {
            check_topic_name(topic)?;
        }
        let options = ConsumerOptions::new(&self.options, asked, name.group(), name.full())?;
        let mut names = self.names.lock();
        let entry = names.entry(name.full().clone()).or_default();
        if entry.session.is_some() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("id {} is already taken", name.full()),
            ));
        }
        let session = Session::new(name, topics, options, self);
        entry.session = Some(session.clone());
        Ok(Lease { registry: self.clone(), session, runtime })
    }

    /// What the groups of its sessions have not been told.
    pub(super) fn owed(&self) -> &Arc<OwedCommits> {
        &self.owed
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The group of `heir` has given it `partitions`: no other session of ours has them any more, whatever it believes.
    /// Returns whether one had.
    pub(super) fn hand_over(&self, heir: &Session, partitions: &[Partition]) -> bool {
        let mut had_any = false;
        for session in self.all() {
            if session.name().group() == heir.name().group() && !std::ptr::eq(&*session, heir) {
                had_any |= session.dispossess(partitions);
            }
        }
        had_any
    }

    /// Waits until the consumers of ended sessions have committed and left, at most for `deadline`; returns
    /// how many have not.
    pub async fn drained(&self, deadline: Duration) -> usize {
        let leaving: Vec<_> =
            self.names.lock().values().filter_map(|entry| entry.left.clone()).collect();
        let all = async {
            for mut left in leaving {
                let _ = left.wait_for(|left| *left).await;
            }
        };
        let _ = tokio::time::timeout(deadline, all).await;
        self.names
            .lock()
            .values()
            .filter(|entry| entry.left.as_ref().is_some_and(|left| !*left.borrow()))
            .count()
    }

    fn release(self: &Arc<Self>, session: &Arc<Session>, runtime: &tokio::runtime::Handle) {
        let (has_left, left) = watch::channel(false);
        let name = session.name().full().clone();
        if let Some(entry) = self.names.lock().get_mut(&name) {
            entry.session = None;
            entry.left = Some(left);
        }
        session.close();
        let (registry, session) = (self.clone(), session.clone());
        runtime.spawn(async move {
            session.left().await;
            has_left.send_replace(true);
            let mut names = registry.names.lock();
            if names.get(&name).is_some_and(|entry| {
                entry.session.is_none() && entry.left.as_ref().is_none_or(|left| *left.borrow())
            }) {
                names.remove(&name);
            }
        });
    }
}

impl Lease {
    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Joins the group; see [`Session::join`].
    pub fn join(&self) {
        let predecessor = self
            .registry
            .names
            .lock()
            .get(self.session.name().full())
            .and_then(|entry| entry.left.clone());
        self.session.join(predecessor, &self.runtime);
    }
}

impl Drop for Lease {
    /// Frees the name at once; the consumer commits and leaves in the background.
    fn drop(&mut self) {
        self.registry.release(&self.session, &self.runtime);
    }
}
