//! What the benches share that read a topic: filling it, a bare loop over it, a drain over Redis.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::ptr;
use std::time::{Duration, Instant};

use arrow::ipc::reader::StreamReader;
use rdkafka_sys as librdkafka;

use crate::Result;
use crate::resp::{Reply, encode};
use crate::server::{self, Server};
use crate::{load, sys};

/// The argument behind `name`.
pub fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

/// Median, smallest and largest.
pub fn spread(values: &mut [f64], decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(min), Some(median), Some(max)) => {
            format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
        }
        _ => "-".to_owned(),
    }
}

/// Produces `message` `messages` times to a topic, and waits until all are stored.
pub fn fill(server: &Server, topic: &str, message: &str, messages: usize) -> Result<()> {
    let mut command = Vec::new();
    encode(&["RPUSHX", &format!("topics:{topic}"), message], &mut command);
    let streams = vec![server.client()?.into_stream()];
    load::drive(streams, &command, 64, messages)?;
    flushed(server)
}

/// Waits until every message that `server` has taken is stored.
pub fn flushed(server: &Server) -> Result<()> {
    let mut control = server.client()?;
    server::eventually("every message to be stored", server::PATIENCE, || {
        let Reply::Array(fields) = control.call(&["HGETALL", "stats"])? else {
            return Err("HGETALL stats did not answer an array".to_owned());
        };
        let is_flushed = fields.chunks_exact(2).any(|pair| {
            matches!(pair, [Reply::Text(name), Reply::Text(value)]
                if name == "producer.unflushed.messages" && value == "0")
                || matches!(pair, [Reply::Text(name), Reply::Integer(0)]
                    if name == "producer.unflushed.messages")
        });
        Ok(is_flushed.then_some(()))
    })
}

/// CPU time of karrow for `messages` of a topic as Arrow batches over Redis, and rows per second at the client.
pub fn drain(
    server: &Server,
    topic: &str,
    format: &str,
    messages: usize,
) -> Result<(Duration, f64)> {
    let io = |why: std::io::Error| format!("draining {topic}: {why}");
    let mut stream = TcpStream::connect(server.ports.redis).map_err(io)?;
    stream.set_read_timeout(Some(server::PATIENCE)).map_err(io)?;
    let mut reader = BufReader::with_capacity(1 << 20, stream.try_clone().map_err(io)?);
    let mut command = Vec::new();
    encode(
        &["CLIENT", "SETNAME", &format!("drain-{}-{topic}:one", server.process.pid())],
        &mut command,
    );
    stream.write_all(&command).map_err(io)?;
    bulk(&mut reader).map_err(io)?;
    command.clear();
    let key = format!(r#"arrow:{topic}:{{"karrow.format":"{format}"}}"#);
    encode(&["BLPOP", &key, "60"], &mut command);
    let (cpu, began) = (server.process.cpu()?, Instant::now());
    let mut rows = 0;
    while rows < messages {
        stream.write_all(&command).map_err(io)?;
        let mut line = String::new();
        reader.read_line(&mut line).map_err(io)?;
        if line.trim_end() != "*2" {
            return Err(format!("draining {topic}: after {rows} rows karrow answered {line:?}"));
        }
        bulk(&mut reader).map_err(io)?;
        let batch = bulk(&mut reader).map_err(io)?;
        let batches =
            StreamReader::try_new(batch.as_slice(), None).map_err(|why| why.to_string())?;
        for batch in batches {
            rows += batch.map_err(|why| why.to_string())?.num_rows();
        }
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    Ok((server.process.cpu()?.saturating_sub(cpu), rate))
}

fn bulk(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let len: usize = line
        .trim_end()
        .strip_prefix('$')
        .and_then(|len| len.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("{line:?} is no bulk string")))?;
    let mut value = vec![0; len + 2];
    reader.read_exact(&mut value)?;
    value.truncate(len);
    Ok(value)
}

/// CPU time of a loop that takes the first `messages` of the topic from librdkafka in batches and looks at its length.
pub fn bare_loop(brokers: SocketAddr, topic: &str, messages: usize) -> Result<Duration> {
    let before = sys::cpu_of_self();
    let text = |text: &str| CString::new(text).expect("no NUL");
    let mut errors = [0; 512];
    // SAFETY: every object is checked when it is made, used while it lives and destroyed once, in this function.
    unsafe {
        let conf = librdkafka::rd_kafka_conf_new();
        for (name, value) in [
            ("bootstrap.servers", brokers.to_string()),
            ("group.id", "bare".to_owned()),
            ("fetch.queue.backoff.ms", "10".to_owned()),
        ] {
            librdkafka::rd_kafka_conf_set(
                conf,
                text(name).as_ptr(),
                text(&value).as_ptr(),
                errors.as_mut_ptr(),
                errors.len(),
            );
        }
        let kind = librdkafka::rd_kafka_type_t::RD_KAFKA_CONSUMER;
        let client = librdkafka::rd_kafka_new(kind, conf, errors.as_mut_ptr(), errors.len());
        if client.is_null() {
            return Err("the bare loop has no client".to_owned());
        }
        let list = librdkafka::rd_kafka_topic_partition_list_new(1);
        let one = librdkafka::rd_kafka_topic_partition_list_add(list, text(topic).as_ptr(), 0);
        (*one).offset = 0;
        librdkafka::rd_kafka_assign(client, list);
        librdkafka::rd_kafka_topic_partition_list_destroy(list);
        let queue = librdkafka::rd_kafka_queue_get_partition(client, text(topic).as_ptr(), 0);
        librdkafka::rd_kafka_queue_forward(queue, ptr::null_mut());
        let mut taken_now = [ptr::null_mut::<librdkafka::rd_kafka_message_t>(); 1024];
        let (mut count, mut bytes) = (0, 0);
        let deadline = Instant::now() + server::PATIENCE;
        while count < messages && Instant::now() < deadline {
            let taken = librdkafka::rd_kafka_consume_batch_queue(
                queue,
                100,
                taken_now.as_mut_ptr(),
                taken_now.len(),
            );
            for message in taken_now.iter().take(usize::try_from(taken).unwrap_or(0)) {
                bytes += (**message).len;
                count += 1;
                librdkafka::rd_kafka_message_destroy(*message);
            }
        }
        librdkafka::rd_kafka_queue_destroy(queue);
        librdkafka::rd_kafka_destroy(client);
        if count < messages || bytes == 0 {
            return Err(format!("the bare loop got {count} of {messages} messages"));
        }
    }
    Ok(sys::cpu_of_self().saturating_sub(before))
}
