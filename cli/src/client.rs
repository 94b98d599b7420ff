//! The client of the coordinators: tries them in order, says which one failed and why.

use millstream_proto::v1::client_service_client::ClientServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::args::ClientArgs;
use crate::config::{self, ClientSettings};
use crate::failure::{Code, Failure, Result};
use crate::limits::{CALL_TIMEOUT, CONNECT_TIMEOUT, KEEPALIVE, REPLY_BYTES_MAX};

/// The generated client, over one connection.
pub type Grpc = ClientServiceClient<Channel>;

/// What a verb needs to reach coordinators and the local agent.
#[derive(Debug)]
pub struct Session {
    /// Settings of all layers.
    pub settings: ClientSettings,
    /// JSON on standard output?
    pub json: bool,
}

impl Session {
    /// Reads the layers of settings.
    pub fn new(args: &ClientArgs) -> Result<Session> {
        let settings = config::layered("client", args.config.as_deref(), &args.settings)?;
        Ok(Session { settings, json: args.json })
    }

    /// With one coordinator, and nothing else.
    pub fn at(coordinator: &str) -> Session {
        let settings = ClientSettings { coordinator: vec![coordinator.to_owned()], socket: None };
        Session { settings, json: false }
    }

    /// A unary call about `thing`, at the first coordinator that answers.
    pub async fn call<T, F>(&self, thing: &str, mut call: impl FnMut(Grpc) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let timed = |client| {
            let answer = call(client);
            async move {
                match tokio::time::timeout(CALL_TIMEOUT, answer).await {
                    Ok(answer) => answer,
                    Err(_) => Err(Status::unavailable(format!("no answer within {CALL_TIMEOUT:?}"))),
                }
            }
        };
        Ok(self.first_that_answers(thing, timed).await?.into_inner())
    }

    /// A call that streams, at the first coordinator that answers.
    pub async fn stream<T, F>(&self, thing: &str, call: impl FnMut(Grpc) -> F) -> Result<Streaming<T>>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        Ok(self.first_that_answers(thing, call).await?.into_inner())
    }

    /// As [`call`](Self::call), with what came besides the reply.
    pub async fn first_that_answers<T, F>(&self, thing: &str, mut call: impl FnMut(Grpc) -> F) -> Result<Response<T>>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut reasons = Vec::new();
        for url in self.settings.coordinators() {
            let channel = match connect(endpoint(&url)?).await {
                Ok(channel) => channel,
                Err(reason) => {
                    reasons.push(format!("{url} ({reason})"));
                    continue;
                }
            };
            let client = ClientServiceClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
            match call(client).await {
                Ok(reply) => return Ok(reply),
                Err(status) => {
                    let failure = Failure::from_status(thing, &status);
                    if failure.code != Code::Unreachable {
                        return Err(failure);
                    }
                    reasons.push(format!("{url} ({})", failure.reason));
                }
            }
        }
        Err(Failure::new(Code::Unreachable, "coordinator", format!("no answer from {}", reasons.join(", ")))
            .next("is the coordinator running? see --coordinator and MILLSTREAM_COORDINATOR; then try again"))
    }
}

/// A coordinator's URL, parsed.
pub fn endpoint(url: &str) -> Result<Endpoint> {
    let refused = |reason: String| {
        Failure::usage(format!("coordinator {url}"), reason).next("write --coordinator http://HOST:7070")
    };
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        return Err(refused("is not a URL with http:// before the host".into()));
    }
    Endpoint::from_shared(url.to_owned()).map_err(|e| refused(e.to_string()))
}

/// Why there is no connection, in words.
async fn connect(endpoint: Endpoint) -> Result<Channel, String> {
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .tcp_nodelay(true);
    match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(innermost(&error)),
        Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
    }
}

/// "transport error" says nothing: the last source does.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
