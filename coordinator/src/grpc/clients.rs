//! Clients: the command line, Python, scripts. Each request is a call into the driver, answered when it is durable.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use millstream_proto::v1;
use millstream_proto::v1::client_service_server::ClientService;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::copies;
use crate::driver::DriverHandle;
use crate::failure::RequestError;
use crate::http::Documents;
use crate::limits::{ADDS_MAX, PROGRESS_QUEUE_MAX};
use crate::register::{self, Addition};

type Steps<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(crate) struct Clients {
    driver: DriverHandle,
    documents: Documents,
    additions: Arc<Semaphore>,
}

impl Clients {
    pub(crate) fn new(driver: DriverHandle, documents: Documents) -> Clients {
        Clients { driver, documents, additions: Arc::new(Semaphore::new(ADDS_MAX)) }
    }
}

#[tonic::async_trait]
impl ClientService for Clients {
    type AddDatasetStream = Steps<v1::AddDatasetProgress>;

    async fn add_dataset(
        &self,
        request: Request<v1::AddDatasetRequest>,
    ) -> Result<Response<Self::AddDatasetStream>, Status> {
        let addition = Addition::parse(request.get_ref())?;
        let (out, steps) = mpsc::channel(PROGRESS_QUEUE_MAX);
        let (driver, additions) = (self.driver.clone(), self.additions.clone());
        tokio::spawn(async move {
            let _place = additions.acquire().await;
            let done = register::add(&driver, addition, &out).await;
            let _ = out.send(done.map_err(Status::from)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(steps))))
    }

    async fn list_datasets(
        &self,
        _request: Request<v1::ListDatasetsRequest>,
    ) -> Result<Response<v1::ListDatasetsReply>, Status> {
        let reply = self.driver.call(|state, _| state.list()).await?;
        Ok(Response::new(reply))
    }

    async fn show_dataset(
        &self,
        request: Request<v1::ShowDatasetRequest>,
    ) -> Result<Response<v1::ShowDatasetReply>, Status> {
        let request = request.into_inner();
        let reply = self.driver.call(move |state, _| state.show(&request)).await??;
        Ok(Response::new(reply))
    }

    async fn remove_dataset(
        &self,
        request: Request<v1::RemoveDatasetRequest>,
    ) -> Result<Response<v1::RemoveDatasetReply>, Status> {
        let dataset = request.into_inner().dataset;
        let answer = self.driver.call(move |state, now| state.remove(now, &dataset));
        Ok(Response::new(answer.await??.settle().await?))
    }

    async fn stage(&self, request: Request<v1::StageRequest>) -> Result<Response<v1::StageReply>, Status> {
        let request = request.into_inner();
        let answer = self.driver.call(move |state, now| state.stage(now, &request));
        Ok(Response::new(answer.await??.settle().await?))
    }

    type WaitStream = Steps<v1::WaitProgress>;

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let request = request.into_inner();
        let steps = self.driver.call(move |state, now| state.wait(now, &request)).await??;
        Ok(Response::new(Box::pin(ReceiverStream::new(steps))))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::PinReply>, Status> {
        let request = request.into_inner();
        let answer = self.driver.call(move |state, _| state.pin(&request));
        Ok(Response::new(answer.await??.settle().await?))
    }

    async fn evict(&self, request: Request<v1::EvictRequest>) -> Result<Response<v1::EvictReply>, Status> {
        let request = request.into_inner();
        let asked = request.clone();
        let question = self.driver.call(move |state, now| state.evict_question(now, &asked)).await??;
        let origin = copies::ask(question).await?;
        let answer = self.driver.call(move |state, now| state.evict(now, &request, &origin));
        let answered = answer.await??.settle().await?;
        // Dropped without an answer: the version was removed meanwhile, or we stop.
        let reply = answered.await.map_err(|_| RequestError::Stopping)?;
        Ok(Response::new(reply))
    }

    type VerifyStream = Steps<v1::VerifyProgress>;

    async fn verify(&self, request: Request<v1::VerifyDatasetRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let request = request.into_inner();
        let steps = self.driver.call(move |state, _| state.verify(&request)).await??;
        Ok(Response::new(Box::pin(ReceiverStream::new(steps))))
    }

    async fn open_job(&self, request: Request<v1::OpenJobRequest>) -> Result<Response<v1::JobReply>, Status> {
        let request = request.into_inner();
        let answer = self.driver.call(move |state, now| state.open_job(now, &request));
        Ok(Response::new(answer.await??.settle().await?))
    }

    async fn close_job(&self, request: Request<v1::CloseJobRequest>) -> Result<Response<v1::JobReply>, Status> {
        let request = request.into_inner();
        let answer = self.driver.call(move |state, now| state.close_job(now, &request));
        Ok(Response::new(answer.await??.settle().await?))
    }

    async fn show_job(&self, request: Request<v1::ShowJobRequest>) -> Result<Response<v1::JobReply>, Status> {
        let job = request.into_inner().job;
        let reply = self.driver.call(move |state, now| state.show_job(now, &job)).await??;
        Ok(Response::new(reply))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let dataset = request.into_inner().dataset;
        let document = self.driver.call(move |state, now| state.status(now, &dataset)).await??;
        let json = serde_json::to_string(&document).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(v1::StatusReply { json }))
    }

    async fn view(&self, request: Request<v1::ViewRequest>) -> Result<Response<v1::ViewReply>, Status> {
        let path = request.into_inner().path;
        let answered = self.documents.get(&path).await;
        let json = answered.document.to_string();
        Ok(Response::new(v1::ViewReply { status: answered.status.as_u16().into(), json }))
    }
}
