//! What systemd is told of a daemon: that it is up, that it still answers, that it stops.
//!
//! "Answers" is asked from outside, through the daemon's own socket or port: a loop that hangs is a daemon that hangs.
//! Without systemd (no NOTIFY_SOCKET) nothing happens.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::limits::{SYSTEMD_POLL, SYSTEMD_PROBE};
use crate::socket::Agent;

/// Whom to ask whether the daemon answers.
#[derive(Clone, Debug)]
pub enum Probe {
    /// The agent's socket.
    Socket(std::path::PathBuf),
    /// The coordinator's HTTP port.
    Http(std::net::SocketAddr),
}

impl Probe {
    async fn answers(&self) -> bool {
        let asked = async {
            match self {
                Probe::Socket(path) => greets(path).await,
                Probe::Http(address) => healthy(*address).await.unwrap_or(false),
            }
        };
        tokio::time::timeout(SYSTEMD_PROBE, asked).await.unwrap_or(false)
    }
}

async fn greets(path: &Path) -> bool {
    match Agent::connect(path).await {
        Ok(mut agent) => agent.hello().await.is_ok(),
        Err(_) => false,
    }
}

async fn healthy(mut address: std::net::SocketAddr) -> std::io::Result<bool> {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 15];
    stream.read_exact(&mut head).await?;
    Ok(head.starts_with(b"HTTP/1.1 200"))
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// Keeps systemd informed until the stop.
pub async fn tell(probe: Probe, shutdown: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let every = sd_notify::watchdog_enabled().map_or(Duration::MAX, |limit| limit / 3);
    let mut up = false;
    loop {
        if probe.answers().await {
            let news = if up { NotifyState::Watchdog } else { NotifyState::Ready };
            up = true;
            say(&[news]);
        }
        let pause = if up { every } else { SYSTEMD_POLL };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(pause.min(Duration::from_secs(3600))) => {}
        }
    }
    say(&[NotifyState::Stopping]);
}
