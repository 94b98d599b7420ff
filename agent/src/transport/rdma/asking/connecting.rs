//! How a link begins: a connection to the peer's port, greetings, and a queue pair on each side.

use std::sync::Arc;

use millstream_agent_core::wire::{Features, Frame, Refusal, WireError};
use millstream_rdma::{Queue, Rail, RdmaError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Refused;
use crate::buffers::Slot;
use crate::buffers::rdma::Outgoing;
use crate::transport::rdma::{Node, joined, to_wire};
use crate::transport::tcp::greeting::{GreetingError, greet};
use crate::transport::tcp::socket;

/// What a link is made of.
pub(super) struct Paired {
    pub(super) stream: TcpStream,
    /// What has come over it and was not looked at.
    pub(super) held: Vec<u8>,
    pub(super) queue: Queue<Slot, Outgoing>,
}

/// The other way in which an attempt may end: this rail is on the network from which the peer answers.
struct Nearer(Rail);

/// A link's parts, over the rail of choice, or at once over another when the first does not lead to the peer.
pub(super) async fn connect(node: &Arc<Node>, address: &str) -> Result<Paired, Refused> {
    let Some(rail) = node.rails.choose(address) else {
        let reason = node.rails.lack().err().flatten().unwrap_or("no-device");
        return Err(Refused::ours(reason, "no device can be used"));
    };
    let other = match connect_over(node, address, &rail).await {
        Ok(Ok(paired)) => return Ok(paired),
        Ok(Err(Nearer(nearer))) => {
            node.rails.failed(address, rail.device());
            nearer
        }
        Err(refused) => {
            let other = node.rails.choose(address).filter(|other| refused.rail && other.device() != rail.device());
            other.ok_or(refused)?
        }
    };
    let again = connect_over(node, address, &other).await?;
    again.map_err(|_| Refused::theirs("no-route", "it answers from another network each time"))
}

/// A connection to the peer's port, then all the rest.
async fn connect_over(node: &Arc<Node>, address: &str, rail: &Rail) -> Result<Result<Paired, Nearer>, Refused> {
    let timeout = node.config.connect_timeout;
    let connected = tokio::time::timeout(timeout, TcpStream::connect(address)).await;
    let stream = match connected {
        Ok(stream) => stream.map_err(|e| Refused::unreachable(e.to_string()))?,
        Err(_) => return Err(Refused::unreachable(format!("no connection within {timeout:?}"))),
    };
    socket::prepare(&stream).map_err(|e| Refused::unreachable(e.to_string()))?;
    let timeout = node.config.setup_timeout;
    let paired = tokio::time::timeout(timeout, pair(node, address, rail, stream)).await;
    let paired =
        paired.unwrap_or_else(|_| Err(Refused::theirs("setup-timeout", format!("no queue pair within {timeout:?}"))));
    if let Err(Refused { rail: true, .. }) = &paired {
        node.rails.failed(address, rail.device());
    }
    paired
}

/// Greeting and queue pairs.
async fn pair(
    node: &Arc<Node>,
    address: &str,
    rail: &Rail,
    mut stream: TcpStream,
) -> Result<Result<Paired, Nearer>, Refused> {
    let broken = |e: std::io::Error| Refused::theirs("peer-refused", e.to_string());
    let mut held = Vec::new();
    greeted(node, &mut stream, &mut held).await?;
    let ours = |e: RdmaError| Refused::ours(e.reason(), e.to_string());
    let queue = rail.queue::<Slot, Outgoing>().map_err(ours)?;
    let mut bytes = Vec::new();
    Frame::QueuePair(to_wire(&queue.address())).encode(&mut bytes);
    stream.write_all(&bytes).await.map_err(broken)?;
    let theirs = loop {
        let mut view = held.as_slice();
        let decoded = Frame::decode(&mut view).map_err(|e| Refused::theirs("protocol", e.to_string()))?;
        let taken = held.len() - view.len();
        held.drain(..taken);
        match decoded {
            Some(Frame::QueuePair(pair)) => break pair,
            Some(Frame::Broken { trouble }) => {
                return Err(Refused::rail(trouble.reason(), format!("it gives no queue pair: {trouble:?}")));
            }
            Some(other) => return Err(Refused::theirs("protocol", format!("{other:?} instead of a queue pair"))),
            None => {}
        }
        if stream.read_buf(&mut held).await.map_err(broken)? == 0 {
            return Err(Refused::theirs("peer-refused", "closed before it gave a queue pair"));
        }
    };
    if let Some(nearer) = node.rails.nearer(address, rail.device(), &theirs) {
        return Ok(Err(Nearer(nearer)));
    }
    let queue = joined(queue, &theirs).await.map_err(|e| Refused::rail(e.reason(), e.to_string()))?;
    Ok(Ok(Paired { stream, held, queue }))
}

/// Both sides have introduced themselves, and the peer offers RDMA.
async fn greeted(node: &Node, stream: &mut TcpStream, held: &mut Vec<u8>) -> Result<(), Refused> {
    let hello = greet(stream, &node.config.node, node.config.token, Features::RDMA, held).await;
    let hello = hello.map_err(|error| match error {
        GreetingError::Wire(e @ WireError::Version { .. }) => Refused::theirs("version-mismatch", e.to_string()),
        GreetingError::Refused(Refusal::Version) => Refused::theirs("version-mismatch", error.to_string()),
        GreetingError::Refused(_) => Refused::theirs("refused", error.to_string()),
        other => Refused::theirs("peer-refused", other.to_string()),
    })?;
    if !hello.features.contains(Features::RDMA) {
        return Err(Refused::theirs("peer-without-rdma", format!("node {} offers no RDMA now", hello.node)));
    }
    Ok(())
}
