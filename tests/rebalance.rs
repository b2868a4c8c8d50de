//! Members that come and go: nothing is lost, and what was acked is not delivered again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::kafka::{Code, OFFSET_COMMIT};
use crate::support::{Client, Kafka, Karrow, Reply, eventually};

const PARTITIONS: i64 = 4;

/// What all members together have seen.
#[derive(Default)]
struct Log {
    /// Orders what happened on different connections.
    clock: AtomicU64,
    /// By partition and offset: when an ack that covers it was answered.
    acked: Mutex<HashMap<(i64, i64), u64>>,
    delivered: Mutex<HashMap<(i64, i64), usize>>,
    count: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Log {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// How many different messages were delivered.
    fn seen(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn deliver(&self, asked: u64, at: (i64, i64), member: &str) {
        if let Some(acked) = self.acked.lock().unwrap().get(&at)
            && *acked < asked
        {
            self.wrong.lock().unwrap().push(format!("{member} got {at:?}, which was acked before"));
        }
        let mut delivered = self.delivered.lock().unwrap();
        let times = delivered.entry(at).or_insert(0);
        *times += 1;
        if *times == 1 {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Pops and acks one by one until told to stop; then says goodbye, or does not.
fn consume(
    mut client: Client,
    member: &str,
    key: &str,
    log: &Log,
    stop: &AtomicBool,
    quit: bool,
) -> usize {
    let mut own = 0;
    let mut last: HashMap<i64, i64> = HashMap::new();
    while !stop.load(Ordering::SeqCst) {
        let asked = log.now();
        let reply = client.call(&["BLPOP", key, "0.2"]);
        let message = match &reply {
            // The name's last owner has not been missed yet.
            Reply::Error(text) if text.ends_with("is already taken") => continue,
            Reply::Error(text) => {
                log.wrong.lock().unwrap().push(format!("{member}: {text}"));
                continue;
            }
            reply => match reply.message() {
                None => continue,
                Some(message) => message,
            },
        };
        let at = (message.partition, message.offset);
        // Inside a member a partition goes on, or starts again behind its commit: never a hole.
        if let Some(before) = last.insert(at.0, at.1)
            && at.1 > before + 1
            && !(before + 1..at.1)
                .all(|offset| log.delivered.lock().unwrap().contains_key(&(at.0, offset)))
        {
            log.wrong.lock().unwrap().push(format!("{member} jumped from {before} to {at:?}"));
        }
        log.deliver(asked, at, member);
        own += 1;
        // A refusal means that the partition has gone meanwhile: then it comes again, somewhere.
        if let Reply::Int(_) = client.call(&["RPUSH", "acks", &message.ack()]) {
            let now = log.now();
            log.acked.lock().unwrap().entry(at).or_insert(now);
        }
    }
    if quit {
        assert_eq!(client.say("QUIT").to_string(), "+OK");
    }
    own
}

struct Member {
    thread: std::thread::JoinHandle<usize>,
    stop: Arc<AtomicBool>,
}

impl Member {
    fn start(karrow: &Karrow, name: &str, key: &str, log: &Arc<Log>, quit: bool) -> Self {
        let client = karrow.named(name);
        let stop = Arc::new(AtomicBool::new(false));
        let (log, key, name, stopped) =
            (log.clone(), key.to_owned(), name.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || consume(client, &name, &key, &log, &stopped, quit));
        Self { thread, stop }
    }

    fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the member goes on to its end")
    }
}

/// One member stays, `rounds` others come and go; the last two to come stay to the end.
#[track_caller]
fn check(options: &str, rounds: usize, messages: i64) {
    let kafka = Kafka::with(&[("t", PARTITIONS as i32)]);
    let log = Log::default();
    check_on(&kafka, &Karrow::start(&kafka), options, rounds, messages, log);
}

#[track_caller]
fn check_on(kafka: &Kafka, karrow: &Karrow, options: &str, rounds: usize, messages: i64, log: Log) {
    for partition in 0..PARTITIONS {
        kafka.put_all("t", partition as i32, (0..messages / 2 / PARTITIONS).map(|n| n.to_string()));
    }
    let key = format!("topics:t:{options}");
    let log = Arc::new(log);
    let stays = Member::start(karrow, "g:stays", &key, &log, true);
    eventually("the first message", || (log.seen() > 0).then_some(()));
    let half = messages as usize / 2;
    let assigned = || karrow.metric("karrow_rebalances_total{kind=\"assigned\"}");
    let mut members = Vec::new();
    for round in 0..rounds {
        let before = assigned();
        let quit = round % 2 == 0;
        let member = Member::start(karrow, &format!("g:m{}", round % 3), &key, &log, quit);
        eventually("the member to get its share", || (assigned() > before).then_some(()));
        // New messages come while the group changes.
        let share = messages / 2 / rounds as i64 / PARTITIONS;
        for partition in 0..PARTITIONS {
            kafka.put_all("t", partition as i32, (0..share).map(|n| n.to_string()));
        }
        if round + 2 < rounds {
            member.stop();
        } else {
            members.push(member);
        }
    }
    let expect = half / PARTITIONS as usize * PARTITIONS as usize
        + (messages as usize / 2 / rounds / PARTITIONS as usize) * PARTITIONS as usize * rounds;
    eventually("all of them to be delivered", || (log.seen() >= expect).then_some(()));
    // While they live: the mock cluster takes no commits while members join, also none of those that leave.
    eventually("every ack to be committed", || {
        (0..PARTITIONS)
            .all(|partition| {
                let end = kafka.end("t", partition as i32);
                kafka.committed("g", "t", partition as i32) == Some(end)
            })
            .then_some(())
    });
    members.push(stays);
    for member in members {
        member.stop();
    }
    let wrong = log.wrong.lock().unwrap();
    assert!(
        wrong.is_empty(),
        "{options}: {} times, first {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    let deliveries = log.delivered.lock().unwrap().values().sum::<usize>();
    assert_eq!(log.seen(), expect, "{options}: no more than there are ({deliveries} deliveries)");
}

#[test]
fn twenty_members_come_and_go_under_kip_848() {
    check(r#"{"group.protocol":"consumer"}"#, 20, 20_000);
}

/// On the embedded broker, because the mock cluster refuses the commits of a revocation under this protocol
/// (it takes none while members join; real brokers take them).
#[cfg(feature = "embedded-broker")]
#[test]
fn members_come_and_go_under_the_eager_protocol() {
    use karrow::kafka::admin::TopicSpec;

    let karrow = Karrow::embedded(&[]);
    let admin = karrow.admin();
    let topic = TopicSpec { partitions: PARTITIONS as i32, ..TopicSpec::new("t") };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(admin.create(&[topic])).expect("an answer").remove(0).expect("created");
    let options =
        r#"{"session.timeout.ms":6000,"partition.assignment.strategy":"range,roundrobin"}"#;
    check_on(&Kafka::at(&karrow.brokers), &karrow, options, 4, 8000, Log::default());
}

#[test]
fn members_come_and_go_under_the_cooperative_protocol() {
    // The mock cluster refuses those commits here, too; the next owner knows what is owed to the group.
    let kafka = Kafka::with(&[("t", PARTITIONS as i32)]);
    let options =
        r#"{"session.timeout.ms":3000,"partition.assignment.strategy":"cooperative-sticky"}"#;
    check_on(&kafka, &Karrow::start(&kafka), options, 4, 8000, Log::default());
}

/// A member that its group has given up may not commit any more; what it had acked does not come again all the same.
#[test]
fn acks_outlive_a_member_that_was_given_up() {
    for (options, who) in [
        (r#"{"session.timeout.ms":2000,"partition.assignment.strategy":"range"}"#, "g:one"),
        (
            r#"{"session.timeout.ms":2000,"partition.assignment.strategy":"cooperative-sticky"}"#,
            "g:one",
        ),
        (r#"{"session.timeout.ms":2000,"partition.assignment.strategy":"range"}"#, "g:two"),
    ] {
        let kafka = Kafka::with(&[("t", 1)]);
        kafka.put_all("t", 0, (0..5).map(|n| n.to_string()));
        let karrow = Karrow::start(&kafka);
        let key = format!("topics:t:{options}");
        let mut one = karrow.named("g:one");
        for offset in 0..4 {
            assert_eq!(
                one.call(&["BLPOP", &key, "30"]).message().expect("a message").offset,
                offset
            );
        }
        kafka.fail(OFFSET_COMMIT, &[Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID; 20]);
        assert_eq!(one.call(&["RPUSH", "acks", "t:0:1"]).int(), 1);
        karrow.await_metric("karrow_rebalances_total{kind=\"lost\"}", |lost| lost >= 1.0);
        kafka.heal(OFFSET_COMMIT);
        let next = if who == "g:one" {
            one.call(&["BLPOP", &key, "30"])
        } else {
            one.say("QUIT");
            karrow.named(who).call(&["BLPOP", &key, "30"])
        };
        assert_eq!(next.message().expect("a message").offset, 2, "{who} {options}");
        eventually("the ack to be committed", || {
            (kafka.committed("g", "t", 0) == Some(2)).then_some(())
        });
    }
}

/// A partition that went away takes its acks and its prefetched messages with it; one that stays keeps both.
#[test]
fn a_revoked_partition_is_gone_and_a_kept_one_is_not() {
    for (options, keeps) in [
        (r#"{"session.timeout.ms":2000,"partition.assignment.strategy":"range"}"#, false),
        (
            r#"{"session.timeout.ms":2000,"partition.assignment.strategy":"cooperative-sticky"}"#,
            true,
        ),
        (r#"{"group.protocol":"consumer"}"#, true),
    ] {
        let kafka = Kafka::with(&[("t", 2)]);
        for partition in 0..2 {
            kafka.put_all("t", partition, (0..10).map(|n| n.to_string()));
        }
        let karrow = Karrow::start(&kafka);
        let key = format!("topics:t:{options}");
        let mut one = karrow.named("g:one");
        let mut next = [0, 0];
        while next.contains(&0) || next.iter().sum::<i64>() < 12 {
            let message = one.call(&["BLPOP", &key, "30"]).message().expect("a message");
            assert_eq!(message.offset, next[message.partition as usize]);
            next[message.partition as usize] += 1;
        }
        // Delivered, but not acked; the second member takes one of the two partitions.
        let mut two = karrow.named("g:two");
        two.send(&["BLPOP", &key, "30"]);
        let lost = two.reply().message().expect("a message");
        assert_eq!(lost.offset, 0, "{options}: unacked ones come again");
        let gone = lost.partition;
        let kept = 1 - gone;
        assert!(
            one.call(&["RPUSH", "acks", &format!("t:{gone}:0")]).error().starts_with("CONS "),
            "{options}"
        );
        if keeps {
            // What was delivered can still be acked, and reading goes on where it was.
            assert_eq!(one.call(&["RPUSH", "acks", &format!("t:{kept}:0")]).int(), 1, "{options}");
            while next[kept as usize] < 10 {
                let message = one.call(&["BLPOP", &key, "30"]).message().expect("a message");
                assert_eq!(
                    (message.partition, message.offset),
                    (kept, next[kept as usize]),
                    "{options}"
                );
                next[kept as usize] += 1;
            }
            assert!(
                one.call(&["BLPOP", &key, "0.1"]).is_null(),
                "nothing of the other partition is left"
            );
        } else {
            // Everything was taken and given anew: it starts at its commit, of which there is none.
            let message = one.call(&["BLPOP", &key, "30"]).message().expect("a message");
            assert_eq!((message.partition, message.offset), (kept, 0), "{options}");
        }
    }
}

/// Its partitions may all go to others: it is there all the same.
#[test]
fn a_topic_that_appears_is_missing_to_no_member() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut members = ["g:a", "g:b"].map(|name| karrow.named(name));
    for member in &mut members {
        assert!(member.say("BLPOP topics:later 0.2").is_null());
    }
    let missing = || {
        let lines = karrow.clients();
        lines.iter().filter(|line| line.ends_with(" missing-topics=later")).count()
    };
    eventually("both to miss it", || (missing() == 2).then_some(()));
    // One partition: one of them gets nothing.
    kafka.create("later", 1);
    eventually("both to find it", || (missing() == 0).then_some(()));
    assert_eq!(karrow.metric("karrow_missing_topics{topic=\"later\"}"), 0.0);
}
