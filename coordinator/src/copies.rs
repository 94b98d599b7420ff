//! Asks the origin whether it still holds shards of which a node is about to drop the last copy.
//!
//! Participants: the client service asks between two calls of the driver (`driver/evict`). Goals: an answer for every
//! shard within [`ORIGIN_WORD_TIMEOUT`]; what the origin does not say counts as not held. Non-goals: who may drop what
//! (the core's).

use std::collections::BTreeMap;

use millstream_origin::{Origin, OriginError, Pin};
use millstream_types::{RunSet, ShardKey, ShardNo};

use crate::apart::apart;
use crate::failure::RequestError;
use crate::limits::ORIGIN_WORD_TIMEOUT;

/// Shards to ask about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Question {
    pub(crate) url: String,
    pub(crate) shards: Vec<ShardNo>,
    pub(crate) objects: Vec<(ShardKey, Pin)>,
}

/// What the origin said.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtOrigin {
    /// Reads of these would be answered with the registered bytes.
    pub(crate) holds: RunSet,
    /// Why the others do not count.
    pub(crate) why_not: BTreeMap<ShardNo, String>,
}

/// Asks about every shard.
pub(crate) async fn ask(question: Question) -> Result<AtOrigin, RequestError> {
    if question.shards.is_empty() {
        return Ok(AtOrigin::default());
    }
    apart(move || ask_here(question)).await
}

async fn ask_here(question: Question) -> AtOrigin {
    let mut out = AtOrigin::default();
    let answers = match Origin::from_url(&question.url) {
        Ok(origin) => tokio::time::timeout(ORIGIN_WORD_TIMEOUT, origin.still_holds(&question.objects)).await,
        Err(error) => Ok(vec![Err(error)]),
    };
    let answers = answers.unwrap_or_default();
    for (i, shard) in question.shards.into_iter().enumerate() {
        let why = match answers.get(i).or(answers.last()) {
            Some(Ok(())) if i < answers.len() => {
                out.holds.insert(shard);
                continue;
            }
            Some(Err(error @ (OriginError::Changed { .. } | OriginError::NotFound { .. }))) => error.to_string(),
            Some(Err(error)) => format!("the origin does not say whether it has it: {error}"),
            _ => format!("the origin did not answer within {ORIGIN_WORD_TIMEOUT:?}"),
        };
        out.why_not.insert(shard, why);
    }
    out
}
