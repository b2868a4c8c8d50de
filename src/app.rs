//! The one place that joins the modules: starts what the configuration asks for, stops it in order.

use std::io::Write;

use tokio_util::sync::CancellationToken;

use crate::banner::{Addresses, banner};
use crate::config::Config;
use crate::error::Result;

/// Serves until `shutdown` is cancelled, then stops gracefully.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<()> {
    let brokers = config.kafka.producer.get("bootstrap.servers").cloned().unwrap_or_default();
    let at = Addresses {
        resp: config.resp.addr,
        http: config.http_addr,
        brokers,
        embedded: config.embedded.is_some(),
    };
    let topic = config.topics.first().map_or("greetings", String::as_str);
    // Nobody reading stdout is no reason not to serve.
    let _ = std::io::stdout().write_all(banner(&at, topic).as_bytes());
    shutdown.cancelled().await;
    Ok(())
}
