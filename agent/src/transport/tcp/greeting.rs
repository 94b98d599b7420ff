//! Both sides of the greeting, on sockets.

use std::io;

use millstream_agent_core::wire::hello::HELLO_BYTES_MAX;
use millstream_agent_core::wire::{Features, Hello, Refusal, TokenHash, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits::REQUESTS_PER_CONNECTION_MAX;

/// Why there was no greeting.
#[derive(Debug, thiserror::Error)]
pub(in crate::transport) enum GreetingError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side ended the connection.
    #[error("closed before the greeting was complete")]
    Closed,
    /// The bytes are no hello.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The serving side went on talking without being asked.
    #[error("it talks without being asked")]
    Chatty,
    /// The other side says no.
    #[error("refused: {}", .0.as_str())]
    Refused(Refusal),
}

fn hello(node: &str, token: TokenHash, features: Features, window: usize, refusal: Option<Refusal>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HELLO_BYTES_MAX);
    let hello = Hello {
        refusal,
        window: window.min(REQUESTS_PER_CONNECTION_MAX) as u16,
        features,
        token,
        auth: [0; 32],
        node: node.to_owned(),
    };
    hello.encode(&mut bytes);
    bytes
}

/// Reads one hello; what came after it is left in `held`.
async fn read_hello(stream: &mut TcpStream, held: &mut Vec<u8>) -> Result<Hello, GreetingError> {
    held.reserve(HELLO_BYTES_MAX);
    loop {
        let mut view = held.as_slice();
        if let Some(hello) = Hello::decode(&mut view)? {
            let taken = held.len() - view.len();
            held.drain(..taken);
            return Ok(hello);
        }
        if stream.read_buf(held).await? == 0 {
            return Err(GreetingError::Closed);
        }
    }
}

/// The connecting side: says hello, returns the server's. What the server sent behind it is left in `held`.
pub(in crate::transport) async fn greet(
    stream: &mut TcpStream,
    node: &str,
    token: TokenHash,
    features: Features,
    held: &mut Vec<u8>,
) -> Result<Hello, GreetingError> {
    stream.write_all(&hello(node, token, features, 0, None)).await?;
    let theirs = read_hello(stream, held).await?;
    match theirs.refusal {
        Some(refusal) => Err(GreetingError::Refused(refusal)),
        None => Ok(theirs),
    }
}

/// The serving side: hears the hello, answers with a welcome or a refusal. What came behind it is left in `held`.
pub(super) async fn welcome(
    stream: &mut TcpStream,
    node: &str,
    token: TokenHash,
    features: Features,
    window: usize,
    refusal: Option<Refusal>,
    held: &mut Vec<u8>,
) -> Result<Hello, GreetingError> {
    let theirs = match read_hello(stream, held).await {
        Err(GreetingError::Wire(error @ WireError::Version { .. })) => {
            let answer = hello(node, TokenHash::default(), Features::NONE, 0, Some(Refusal::Version));
            stream.write_all(&answer).await?;
            return Err(error.into());
        }
        other => other?,
    };
    let refusal = refusal.or_else(|| (!token.matches(&theirs.token)).then_some(Refusal::Token));
    // A refused stranger is not shown the token's hash.
    let shown = if refusal.is_none() { token } else { TokenHash::default() };
    stream.write_all(&hello(node, shown, features, window, refusal)).await?;
    match refusal {
        Some(refusal) => Err(GreetingError::Refused(refusal)),
        None => Ok(theirs),
    }
}
