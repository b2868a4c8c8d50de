//! What the caller asked for.

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::idle;

/// Shown by `--help`.
pub const HELP: &str = "\
karrow beside redis-server, as ratios. Run it through cargo: make bench, or cargo bench --profile release --bench gateway -- [options]

  --only <work>[,<work>…]       rpushx, rpushx-p16, rpushx-p1, blpop, blpop-p1, blpop-p16, start, idle; all without it
  --pairs <n>                   rounds of each work (7); each round measures karrow, Redis and Redis again
  --quick                       two rounds of a tenth of the size: does it run, not how fast
  --message-bytes <n>           size of a message (100)
  --rpushx-p16-requests <n>     size of each run, in requests
  --rpushx-p1-requests <n>
  --blpop-p1-requests <n>
  --blpop-p16-requests <n>
  --idle-seconds <n>            how long CPU time is sampled with idle consumers (10)
  --place free|apart|together   where the scheduler may put generator and servers: anywhere (the default), the generator
                                on the first core and the servers on the others, or all on the first core
  --self-test                   a Redis in karrow's place: every ratio should be 1; Kafka is only started and stopped

KARROW_BIN names another binary to measure.
";

/// What can be measured, by the names `--only` takes.
pub const WORKS: [&str; 6] = ["rpushx-p16", "rpushx-p1", "blpop-p1", "blpop-p16", "start", "idle"];

/// Which cores the generator and the servers may use. Waking a thread on another, sleeping core can cost more than all
/// the server does for a request, so figures of different placements must not be compared.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The scheduler decides.
    Free,
    /// The generator on the first core, the servers on the others.
    Apart,
    /// All on the first core.
    Together,
}

/// The options, with their defaults filled in.
pub struct Args {
    pub only: Vec<String>,
    pub pairs: usize,
    pub message_bytes: usize,
    pub rpushx_p16_requests: usize,
    pub rpushx_p1_requests: usize,
    pub blpop_p1_requests: usize,
    pub blpop_p16_requests: usize,
    /// Starts are short and scatter: more of them than of the other works.
    pub starts: usize,
    pub idle: idle::Plan,
    pub idle_counts: Vec<usize>,
    pub place: Place,
    pub self_test: bool,
    pub help: bool,
    /// Was this started by `cargo bench`, and not by `cargo test --all-targets`?
    pub bench: bool,
    pub karrow: PathBuf,
}

impl Args {
    /// Reads the command line (without the program's name).
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut args = Self::defaults();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--bench" => args.bench = true,
                "--quick" => args.shrink(),
                "--self-test" => args.self_test = true,
                "--help" | "-h" => args.help = true,
                option => {
                    let value = words
                        .next()
                        .ok_or_else(|| format!("{option} is unknown or needs a value"))?;
                    args.set(option, &value)?;
                }
            }
        }
        Ok(args)
    }

    fn defaults() -> Self {
        Self {
            only: Vec::new(),
            pairs: 7,
            message_bytes: 100,
            rpushx_p16_requests: 1_000_000,
            rpushx_p1_requests: 200_000,
            blpop_p1_requests: 50_000,
            blpop_p16_requests: 300_000,
            starts: 21,
            idle: idle::Plan { settle: Duration::from_secs(5), window: Duration::from_secs(10) },
            idle_counts: vec![0, 1, 50, 200],
            place: Place::Free,
            self_test: false,
            help: false,
            bench: false,
            karrow: std::env::var_os("KARROW_BIN")
                .map_or_else(|| env!("CARGO_BIN_EXE_karrow").into(), PathBuf::from),
        }
    }

    fn shrink(&mut self) {
        self.pairs = 2;
        self.starts = 5;
        self.rpushx_p16_requests /= 10;
        self.rpushx_p1_requests /= 10;
        self.blpop_p1_requests /= 10;
        self.blpop_p16_requests /= 10;
        self.idle = idle::Plan { settle: Duration::from_secs(1), window: Duration::from_secs(2) };
        self.idle_counts = vec![0, 1, 10, 20];
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--only" => return value.split(',').try_for_each(|work| self.choose(work)),
            "--place" => {
                self.place = match value {
                    "free" => Place::Free,
                    "apart" => Place::Apart,
                    "together" => Place::Together,
                    _ => {
                        return Err(format!(
                            "--place takes free, apart or together, not {value:?}"
                        ));
                    }
                };
                return Ok(());
            }
            _ => {}
        }
        let number = match value.parse::<usize>() {
            Ok(number) if number > 0 => number,
            _ => return Err(format!("{option} takes a number above 0, not {value:?}")),
        };
        match option {
            "--pairs" => self.pairs = number,
            "--message-bytes" => self.message_bytes = number,
            "--rpushx-p16-requests" => self.rpushx_p16_requests = number,
            "--rpushx-p1-requests" => self.rpushx_p1_requests = number,
            "--blpop-p1-requests" => self.blpop_p1_requests = number,
            "--blpop-p16-requests" => self.blpop_p16_requests = number,
            "--idle-seconds" => self.idle.window = Duration::from_secs(number as u64),
            _ => return Err(format!("unknown option {option}")),
        }
        Ok(())
    }

    fn choose(&mut self, work: &str) -> Result<()> {
        if !WORKS.iter().any(|known| names(work, known)) {
            return Err(format!("--only takes {}, not {work:?}", WORKS.join(", ")));
        }
        self.only.push(work.to_owned());
        Ok(())
    }

    /// Is this work, one of [`WORKS`], asked for?
    pub fn wants(&self, work: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| names(only, work))
    }
}

/// Does what the caller wrote name this work? `blpop` names both `blpop-p1` and `blpop-p16`.
fn names(written: &str, work: &str) -> bool {
    work.strip_prefix(written).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
