//! What the listeners share: whom protected mode keeps out.

use std::net::SocketAddr;

/// Whether `peer` is refused by a listener on `local`. Redis's rule: while there are no users, and unless the mode
/// is off, a listener beyond loopback serves its own host only.
pub fn is_denied(protected_mode: bool, local: SocketAddr, peer: SocketAddr) -> bool {
    let is_loopback = |addr: SocketAddr| addr.ip().to_canonical().is_loopback();
    protected_mode && !is_loopback(local) && !is_loopback(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protected_mode_keeps_out_remote_clients() {
        for (protected, local, peer, denied) in [
            (true, "0.0.0.0:1", "10.0.0.9:2", true),
            (true, "[::]:1", "[::ffff:10.0.0.9]:2", true),
            (true, "10.0.0.1:1", "10.0.0.1:2", true),
            (true, "0.0.0.0:1", "127.0.0.1:2", false),
            (true, "[::]:1", "[::1]:2", false),
            (true, "[::]:1", "[::ffff:127.0.0.1]:2", false),
            (true, "127.0.0.1:1", "10.0.0.9:2", false),
            (false, "0.0.0.0:1", "10.0.0.9:2", false),
        ] {
            let [at, from] = [local, peer].map(|addr| addr.parse().unwrap());
            assert_eq!(is_denied(protected, at, from), denied, "{protected} {local} {peer}");
        }
    }
}
