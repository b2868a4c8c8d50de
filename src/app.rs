//! The one place that joins the modules: starts what the configuration asks for, stops it in order.

use std::io::Write;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::banner::{Addresses, banner};
use crate::config::Config;
use crate::error::Result;
use crate::kafka::admin::ensure_topics;
use crate::kafka::embedded::EmbeddedBroker;

/// How long creating `--topics` may take; the embedded broker needs some milliseconds.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown` is cancelled, then stops gracefully.
pub async fn serve(mut config: Config, shutdown: CancellationToken) -> Result<()> {
    let broker = match &config.embedded {
        None => None,
        Some(embedded) => {
            let broker = EmbeddedBroker::start(embedded).await?;
            config.kafka.set_bootstrap_servers(&broker.addr().to_string());
            ensure_topics(&config.kafka.producer, &config.topics, TOPICS_TIMEOUT).await?;
            Some(broker)
        }
    };
    let at = Addresses {
        resp: config.resp.addr,
        http: config.http_addr,
        brokers: config.kafka.bootstrap_servers().to_owned(),
        embedded: broker.is_some(),
    };
    let topic = config.topics.first().map_or("greetings", String::as_str);
    // Nobody reading stdout is no reason not to serve.
    let _ = std::io::stdout().write_all(banner(&at, topic).as_bytes());
    shutdown.cancelled().await;
    if let Some(broker) = broker {
        broker.shutdown().await;
    }
    Ok(())
}
