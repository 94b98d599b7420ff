//! Proxies, from the environment, as other tools take them.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use crate::limits::HEAD_READ_BYTES;

/// A forward proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    authorization: Option<String>,
}

fn variable(name: &str) -> Option<String> {
    let lower = std::env::var(name.to_ascii_lowercase()).ok();
    lower.or_else(|| std::env::var(name).ok()).filter(|value| !value.is_empty())
}

impl Proxy {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, unless `NO_PROXY` names the host.
    pub(crate) fn from_env(scheme: &str, host: &str) -> Result<Option<Proxy>, String> {
        let own = if scheme == "https" { variable("HTTPS_PROXY") } else { variable("HTTP_PROXY") };
        let Some(text) = own.or_else(|| variable("ALL_PROXY")) else { return Ok(None) };
        if is_loopback(host) || variable("NO_PROXY").is_some_and(|list| is_excepted(&list, host)) {
            return Ok(None);
        }
        Proxy::parse(&text).map(Some)
    }

    fn parse(text: &str) -> Result<Proxy, String> {
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&full).map_err(|e| format!("the proxy's URL: {e}"))?;
        let (Some(host), "http") = (url.host_str(), url.scheme()) else {
            return Err("only proxies with http:// URLs are supported".to_owned());
        };
        let login = format!("{}:{}", url.username(), url.password().unwrap_or_default());
        let authorization = (login != ":").then(|| format!("Basic {}", BASE64.encode(login)));
        Ok(Proxy { host: host.to_owned(), port: url.port().unwrap_or(80), authorization })
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// Asks for a tunnel to the server.
    pub(crate) async fn tunnel(&self, stream: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        let mut head = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n");
        if let Some(authorization) = &self.authorization {
            head.push_str(&format!("proxy-authorization: {authorization}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") && answer.len() < HEAD_READ_BYTES {
            // Byte by byte: what follows belongs to TLS.
            answer.push(stream.read_u8().await?);
        }
        match answer.get(9..12) {
            Some([b'2', _, _]) => Ok(()),
            _ => {
                let line = String::from_utf8_lossy(&answer);
                let line = line.lines().next().unwrap_or_default().to_owned();
                Err(io::Error::other(format!("the proxy {} refused: {line}", self.host)))
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let loopback = |ip: std::net::IpAddr| ip.is_loopback();
    host == "localhost" || host.parse().is_ok_and(loopback)
}

/// Is `host` one of, or below one of, the comma-separated names?
fn is_excepted(list: &str, host: &str) -> bool {
    list.split(',').map(str::trim).any(|name| {
        let name = name.trim_start_matches("*.").trim_start_matches('.');
        let below = host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        name == "*" || (!name.is_empty() && (host == name || below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_and_exceptions() {
        let proxy = Proxy::parse("http://u:p@proxy.example:3128").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        assert_eq!(proxy.authorization(), Some("Basic dTpw"));
        assert_eq!(Proxy::parse("proxy.example").unwrap().port, 80);
        assert!(Proxy::parse("socks5://proxy.example").is_err());
        for (list, host, excepted) in [
            ("a.example, .b.example", "x.b.example", true),
            ("b.example", "xb.example", false),
            ("*", "any", true),
            ("", "any", false),
        ] {
            assert_eq!(is_excepted(list, host), excepted, "{list} {host}");
        }
    }
}
