//! A real Apache Kafka, one node: its jars from Maven Central into the user's cache, its data in a directory of the run.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::Result;
use crate::server::{Process, free_addr};

/// What the end-to-end tests start as well: the jars, and a log with the ready line on stdout.
const POM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/kafka/pom.xml");
const LOG4J: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/kafka/log4j2.xml");

/// A running broker; stopped when dropped.
pub struct Kafka {
    pub addr: SocketAddr,
    pub version: String,
    _process: Process,
}

impl Kafka {
    /// Formats a log directory under `dir`, starts a broker on a free port and creates `topics`, each with one
    /// partition.
    pub fn start(dir: &Path, topics: &[&str]) -> Result<Self> {
        let version = version()?;
        let jars = jars(&version)?.join("*");
        let (addr, controller) = (free_addr()?, free_addr()?);
        let home = dir.join("kafka");
        fs::create_dir_all(&home).map_err(|why| format!("{}: {why}", home.display()))?;
        let settings =
            write(&home.join("server.properties"), &properties(&home, addr, controller))?;

        let mut format = Command::new("java");
        format.args(["-Xmx128m", "-cp"]).arg(&jars).arg("kafka.tools.StorageTool");
        format
            .args(["format", "-t", "a2Fycm93LWJlbmNobWFyaw", "--standalone", "-c"])
            .arg(&settings);
        run("formatting Kafka's log directory", format)?;

        let mut serve = Command::new("java");
        serve.args(["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=128m"]);
        serve.arg(format!("-Dlog4j2.configurationFile={LOG4J}"));
        serve.arg("-cp").arg(&jars).arg("kafka.Kafka").arg(&settings).current_dir(&home);
        let mut process = Process::spawn("kafka", dir, serve)?;
        process.await_log("Kafka Server started")?;
        create(topics, addr, &jars)?;
        Ok(Self { addr, version, _process: process })
    }
}

/// Each topic is a Java program's start, so they run beside one another.
fn create(topics: &[&str], addr: SocketAddr, jars: &Path) -> Result<()> {
    let tools = topics.iter().map(|topic| {
        let mut tool = Command::new("java");
        tool.args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp"]).arg(jars);
        tool.args(["org.apache.kafka.tools.TopicCommand", "--create", "--topic", topic]);
        tool.args(["--partitions", "1", "--bootstrap-server", &addr.to_string()]);
        let what = format!("creating the topic {topic}");
        let spawned =
            tool.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        (what, tool, spawned)
    });
    for (what, tool, spawned) in tools.collect::<Vec<_>>() {
        check(&what, &tool, spawned.and_then(Child::wait_with_output))?;
    }
    Ok(())
}

fn properties(home: &Path, addr: SocketAddr, controller: SocketAddr) -> String {
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         listeners=PLAINTEXT://{addr},CONTROLLER://{controller}\n\
         advertised.listeners=PLAINTEXT://{addr}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         controller.quorum.bootstrap.servers={controller}\n\
         log.dirs={}\n\
         num.partitions=1\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n",
        home.join("data").display()
    )
}

fn version() -> Result<String> {
    let pom = fs::read_to_string(POM).map_err(|why| format!("{POM}: {why}"))?;
    let version = pom
        .split("<artifactId>kafka_2.13</artifactId><version>")
        .nth(1)
        .and_then(|rest| rest.split('<').next());
    version.map(str::to_owned).ok_or_else(|| format!("{POM} names no version of kafka_2.13"))
}

/// The folder with Kafka's jars, fetched through Maven the first time (55 MB). It is the end-to-end tests' folder, and
/// so is its lock: whoever comes second waits.
fn jars(version: &str) -> Result<PathBuf> {
    let cache = cache()?;
    let folder = cache.join("jars").join("kafka");
    let lib = folder.join("lib");
    let fetched = lib.join(".fetched");
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |why: io::Error| format!("{path}: {why}")
    };

    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let lock = folder.join(".lock");
    let lock =
        fs::File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(io(&lock))?;
    let complete = fetched.exists() || folder.join(".stamp").exists();
    if !complete || !lib.join(format!("kafka_2.13-{version}.jar")).exists() {
        eprintln!(
            "gateway bench: fetching Apache Kafka {version} through Maven into {}",
            folder.display()
        );
        if lib.exists() {
            fs::remove_dir_all(&lib).map_err(io(&lib))?;
        }
        let mut maven = Command::new("mvn");
        maven.args([
            "-q",
            "-B",
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            "-f",
            POM,
        ]);
        maven.arg(format!("-Dmaven.repo.local={}", cache.join("m2").display()));
        maven.arg(format!("-DoutputDirectory={}", lib.display()));
        run("fetching Kafka's jars", maven)?;
        fs::write(&fetched, version).map_err(io(&fetched))?;
    }
    drop(lock);
    Ok(lib)
}

fn cache() -> Result<PathBuf> {
    let root = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .map(|root| root.join("karrow").join("e2e"))
        .ok_or_else(|| "neither XDG_CACHE_HOME nor HOME says where to keep Kafka's jars".to_owned())
}

fn write(path: &Path, text: &str) -> Result<PathBuf> {
    fs::write(path, text).map_err(|why| format!("{}: {why}", path.display()))?;
    Ok(path.to_owned())
}

fn run(what: &str, mut command: Command) -> Result<()> {
    let output = command.output();
    check(what, &command, output)
}

fn check(what: &str, command: &Command, output: io::Result<Output>) -> Result<()> {
    let program = command.get_program().display();
    let output = output.map_err(|why| format!("{what}: {program}: {why}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(format!("{what}: {program} ended with {}:\n{said}", output.status))
}
