//! What an agent says of itself when its session begins, and why one is turned away.

use std::collections::BTreeMap;

use millstream_proto::convert::{self, ConvertError};
use millstream_proto::v1;
use millstream_types::Digest;
use thiserror::Error;

use super::short;
use crate::limits::NODES_MAX;

/// What an agent said of itself, checked.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Its name.
    pub node: String,
    /// Where peers reach it.
    pub listen: String,
    /// Where its metrics are; empty when nowhere.
    pub http: String,
    /// Its version.
    pub agent_version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `tcp`, `rdma`.
    pub transports: Vec<String>,
    /// `uring` or `blocking`.
    pub io: String,
    /// Why not uring.
    pub io_reason: String,
    /// Quota.
    pub capacity_bytes: u64,
    /// Differs for each start of the process.
    pub boot_id: u64,
    /// Versions of which it has something.
    pub digests: Vec<Digest>,
}

/// Why a session was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Another protocol.
    #[error(
        "agent and coordinator do not understand each other: the agent speaks protocol {agent}, this coordinator \
         ({version}) speaks {ours}; install the same version on both"
    )]
    Protocol {
        /// Its protocol.
        agent: u32,
        /// Ours.
        ours: u32,
        /// Our version.
        version: &'static str,
    },
    /// A greeting that makes no sense.
    #[error("the greeting is wrong: {0}")]
    Hello(#[from] ConvertError),
    /// Nothing was said in time, or something else.
    #[error("the first message must be a greeting")]
    NoHello,
    /// Two agents of one name.
    #[error(
        "a node named {node:?} is connected already from {other}; give each agent its own --node (or stop the other)"
    )]
    NameTaken {
        /// The name.
        node: String,
        /// Where the other one listens.
        other: String,
    },
    /// Over [`NODES_MAX`].
    #[error("{NODES_MAX} nodes are known, which is the most")]
    TooMany,
    /// On its way down.
    #[error("the coordinator is stopping")]
    Stopping,
}

/// Checks a greeting.
///
/// # Errors
/// [`Refusal`] in words for the agent's log.
pub fn parse_hello(hello: &v1::Hello) -> Result<Hello, Refusal> {
    if hello.protocol != millstream_proto::PROTOCOL {
        return Err(Refusal::Protocol {
            agent: hello.protocol,
            ours: millstream_proto::PROTOCOL,
            version: env!("CARGO_PKG_VERSION"),
        });
    }
    let digests = hello.digests.iter().map(|d| convert::digest("digests", d)).collect::<Result<_, _>>()?;
    Ok(Hello {
        node: convert::node_name("node", &hello.node)?.to_owned(),
        listen: convert::address("listen", &hello.listen)?.to_owned(),
        http: match hello.http.as_str() {
            "" => String::new(),
            text => convert::address("http", text)?.to_owned(),
        },
        agent_version: short(&hello.agent_version),
        labels: convert::labels("labels", &hello.labels)?,
        transports: hello.transports.iter().take(8).map(|t| short(t)).collect(),
        io: short(&hello.io),
        io_reason: short(&hello.io_reason),
        capacity_bytes: hello.capacity_bytes,
        boot_id: hello.boot_id,
        digests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_are_checked() {
        let good = v1::Hello { protocol: 1, node: "a".into(), listen: "h:1".into(), ..Default::default() };
        assert!(parse_hello(&good).is_ok());
        let wrong = |change: fn(&mut v1::Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            parse_hello(&hello).unwrap_err()
        };
        assert!(matches!(wrong(|h| h.protocol = 2), Refusal::Protocol { agent: 2, .. }));
        assert!(matches!(wrong(|h| h.node = "a b".into()), Refusal::Hello(_)));
        assert!(matches!(wrong(|h| h.listen = "nowhere".into()), Refusal::Hello(_)));
        assert!(matches!(wrong(|h| h.digests = vec![vec![1]]), Refusal::Hello(_)));
    }
}
