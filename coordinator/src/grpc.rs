//! The gRPC port: agents' sessions and clients' requests.

use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use millstream_proto::v1::agent_service_server::AgentServiceServer;
use millstream_proto::v1::client_service_server::ClientServiceServer;

use crate::driver::DriverHandle;
use crate::http::Documents;
use crate::limits::{GRPC_MESSAGE_BYTES_MAX, GRPC_STREAMS_PER_CONNECTION_MAX, KEEPALIVE};
use crate::net::Listener;

mod agents;
mod clients;

/// Serves until `shutdown`, and then until the open streams have ended.
pub(crate) async fn serve(
    listener: Listener,
    driver: DriverHandle,
    documents: Documents,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let agents = agents::Agents::new(driver.clone(), shutdown.clone());
    let clients = clients::Clients::new(driver, documents);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(GRPC_STREAMS_PER_CONNECTION_MAX)
        .http2_adaptive_window(Some(true))
        .add_service(
            AgentServiceServer::new(agents)
                .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX),
        )
        .add_service(
            ClientServiceServer::new(clients)
                .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(listener.incoming(), shutdown.cancelled_owned())
        .await
}
