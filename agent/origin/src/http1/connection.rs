//! One connection, plain or TLS, with the few bytes that were read ahead of a body.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustls_native_certs::load_native_certs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use url::Url;

use super::proxy::Proxy;
use crate::limits::{CONNECT_TIMEOUT, HEAD_BYTES_MAX, HEAD_READ_BYTES};

/// Where to connect, and how.
#[derive(Debug)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
    /// As it goes into `Host`: without a port that is the scheme's own.
    host_header: String,
    proxy: Option<Proxy>,
    /// Addresses take turns: S3 answers with several, each a different front end.
    turn: AtomicUsize,
}

impl Endpoint {
    /// From the scheme, host and port of a URL.
    pub(crate) fn of(url: &Url) -> Result<Endpoint, String> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            other => return Err(format!("the endpoint's scheme is {other:?}, not http or https")),
        };
        let host = url.host_str().ok_or("the endpoint has no host")?;
        let port = url.port_or_known_default().ok_or("the endpoint has no port")?;
        let host_header = url[url::Position::BeforeHost..url::Position::AfterPort].to_owned();
        let host = host.trim_matches(|c| c == '[' || c == ']').to_owned();
        let proxy = Proxy::from_env(url.scheme(), &host)?;
        Ok(Endpoint { host, port, tls, host_header, proxy, turn: AtomicUsize::new(0) })
    }

    /// `https://host:port`.
    pub(crate) fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.host_header)
    }

    pub(crate) fn host_header(&self) -> &str {
        &self.host_header
    }

    /// The request target: proxies that forward plain HTTP want the whole URL.
    pub(crate) fn target(&self, path: &str) -> String {
        match (&self.proxy, self.tls) {
            (Some(_), false) => format!("{}{path}", self.origin()),
            _ => path.to_owned(),
        }
    }

    /// For requests that a proxy reads (plain HTTP).
    pub(crate) fn proxy_authorization(&self) -> Option<&str> {
        self.proxy.as_ref().filter(|_| !self.tls)?.authorization()
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(crate) struct Connection {
    io: Io,
    ahead: Vec<u8>,
    start: usize,
}

fn tls_config() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let build = || {
        // Honours SSL_CERT_FILE and SSL_CERT_DIR; AWS tools take AWS_CA_BUNDLE, so do we.
        let mut roots = RootCertStore::empty();
        let found = load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        let bundle = std::env::var_os("AWS_CA_BUNDLE");
        let more = bundle.map(|path| rustls_native_certs::load_certs_from_paths(Some(path.as_ref()), None));
        let (more, _) = roots.add_parsable_certificates(more.map(|m| m.certs).unwrap_or_default());
        if added + more == 0 {
            return Err("no root certificates on this machine; install ca-certificates or set SSL_CERT_FILE".to_owned());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| e.to_string())?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    };
    CONFIG.get_or_init(build).clone()
}

impl Connection {
    pub(crate) async fn open(endpoint: &Endpoint) -> io::Result<Connection> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}"));
        timeout(CONNECT_TIMEOUT, Connection::open_now(endpoint)).await.map_err(|_| late())?
    }

    async fn open_now(endpoint: &Endpoint) -> io::Result<Connection> {
        let (host, port) = match &endpoint.proxy {
            Some(proxy) => (proxy.host.as_str(), proxy.port),
            None => (endpoint.host.as_str(), endpoint.port),
        };
        let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        let turn = endpoint.turn.fetch_add(1, Ordering::Relaxed);
        let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for i in 0..addresses.len() {
            match TcpStream::connect(addresses[(turn + i) % addresses.len()]).await {
                Ok(stream) => return Connection::establish(endpoint, stream).await,
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }

    async fn establish(endpoint: &Endpoint, mut stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        if !endpoint.tls {
            return Ok(Connection::over(Io::Plain(stream)));
        }
        if let Some(proxy) = &endpoint.proxy {
            proxy.tunnel(&mut stream, &endpoint.host, endpoint.port).await?;
        }
        let config = tls_config().map_err(io::Error::other)?;
        let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
        let tls = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Connection::over(Io::Tls(Box::new(tls))))
    }

    fn over(io: Io) -> Connection {
        Connection { io, ahead: Vec::new(), start: 0 }
    }

    /// What was read ahead.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.ahead[self.start..]
    }

    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start == self.ahead.len() {
            self.ahead.clear();
            self.start = 0;
        }
    }

    /// Reads more ahead; an end is an error.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.ahead.drain(..self.start);
            self.start = 0;
        }
        if self.ahead.len() >= HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line that does not end"));
        }
        self.ahead.reserve(HEAD_READ_BYTES);
        let read = match &mut self.io {
            Io::Plain(io) => io.read_buf(&mut self.ahead).await?,
            Io::Tls(io) => io.read_buf(&mut self.ahead).await?,
        };
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// What was read ahead first, then from the socket straight into `out`. Zero at the end.
    pub(crate) async fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.buffered().is_empty() {
            let n = self.buffered().len().min(out.len());
            out[..n].copy_from_slice(&self.buffered()[..n]);
            self.consume(n);
            return Ok(n);
        }
        match &mut self.io {
            Io::Plain(io) => io.read(out).await,
            Io::Tls(io) => io.read(out).await,
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.io {
            Io::Plain(io) => io.write_all(bytes).await,
            Io::Tls(io) => {
                io.write_all(bytes).await?;
                io.flush().await
            }
        }
    }
}
