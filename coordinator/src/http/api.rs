//! `/api/v1`: documents for the page, the terminal and scripts. Each handler is one question to the driver.
//!
//! The routes and their description (`/api/v1/openapi.json`) come from the same declarations.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State as Shared};
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::driver::DriverHandle;
use crate::failure::RequestError;
use crate::limits::FILTER_CHARS_MAX;
use crate::observe::alarms::Alarm;
use crate::observe::events::Event;
use crate::status::{Document, NodeStatus, StageStatus};
use crate::store::StoreHandle;
use crate::views::datasets::{DatasetItem, ReplicaItem, TransferItem};
use crate::views::jobs::Job;
use crate::views::nodes::NodeDetail;
use crate::views::overview::{EventFilter, Overview, Throughput};
use crate::views::picture::Pictures;
use crate::views::picture::detail::DatasetDetail;
use crate::views::picture::map::{Map, MapQuery};
use crate::views::picture::shards::{ShardItem, ShardOrder};
use crate::views::{Page, Paging, short_enough};

mod error;

pub(crate) use error::{ErrorBody, HttpError};

/// Lines of the audit log that one request returns.
const AUDIT_LINES: usize = 1_000;

/// What handlers need.
#[derive(Clone)]
pub(crate) struct Context {
    driver: DriverHandle,
    store: StoreHandle,
    pictures: Arc<Pictures>,
}

type Answer<T> = Result<Json<T>, HttpError>;
type Asked<T> = Result<Query<T>, QueryRejection>;
type Named = Result<Path<String>, PathRejection>;

/// The description of the whole API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millstream coordinator",
        description = "Read-only. Lists come in pages (`offset`, `limit`) and can be filtered (`q`, `state`). \
                       Every document can be followed live: see `/api/v1/stream`."
    ),
    components(schemas(ErrorBody)),
    tags((name = "now", description = "The present state"), (name = "past", description = "What happened"))
)]
struct Description;

/// Which version.
#[derive(Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
#[derive(Default)]
struct StatusQuery {
    /// `name` (the latest version) or `name@version`; everything when left out.
    #[param(max_length = 512)]
    dataset: Option<String>,
}

/// The whole document of `millstream status --json`
#[utoipa::path(get, path = "/api/v1/status", tag = "now", params(StatusQuery), responses(
    (status = 200, body = Document),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 404, body = ErrorBody, description = "no such dataset"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn status(context: Shared<Context>, query: Asked<StatusQuery>) -> Answer<Document> {
    let dataset = query?.0.dataset.unwrap_or_default();
    let document = context.driver.call(move |state, now| {
        if !dataset.is_empty() {
            state.find_dataset(&dataset)?;
        }
        state.status(now, &dataset)
    });
    let document = document.await??;
    Ok(Json(document))
}

/// Everything at a glance
#[utoipa::path(get, path = "/api/v1/overview", tag = "now", responses(
    (status = 200, body = Overview),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn overview(context: Shared<Context>) -> Answer<Overview> {
    Ok(Json(context.driver.call(|state, now| state.overview(now)).await?))
}

/// What is wrong now, worst first
#[utoipa::path(get, path = "/api/v1/alarms", tag = "now", responses(
    (status = 200, body = Vec<Alarm>),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn alarms(context: Shared<Context>) -> Answer<Vec<Alarm>> {
    Ok(Json(context.driver.call(|state, _| state.observed.alarms.clone()).await?))
}

/// Bytes per second by source, over the last minutes
#[utoipa::path(get, path = "/api/v1/throughput", tag = "past", responses(
    (status = 200, body = Throughput),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn throughput(context: Shared<Context>) -> Answer<Throughput> {
    Ok(Json(context.driver.call(|state, _| state.throughput()).await?))
}

/// Dataset versions, those that are not ready first
#[utoipa::path(get, path = "/api/v1/datasets", tag = "now", params(Paging), responses(
    (status = 200, body = Page<DatasetItem>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn datasets(context: Shared<Context>, paging: Asked<Paging>) -> Answer<Page<DatasetItem>> {
    let paging = checked(paging?.0)?;
    Ok(Json(context.driver.call(move |state, now| state.dataset_list(now, &paging)).await?))
}

/// One version: verdict, availability, failures, stages
#[utoipa::path(get, path = "/api/v1/datasets/{dataset}", tag = "now",
    params(("dataset" = String, Path, description = "`name` or `name@version`")), responses(
    (status = 200, body = DatasetDetail),
    (status = 400, body = ErrorBody, description = "the path makes no sense"),
    (status = 404, body = ErrorBody, description = "no such dataset"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn dataset(context: Shared<Context>, name: Named) -> Answer<DatasetDetail> {
    Ok(Json(context.pictures.get(&context.driver, name?.0).await?.detail()))
}

/// Nodes by shards, bucketed to at most so many rows and columns
#[utoipa::path(get, path = "/api/v1/datasets/{dataset}/map", tag = "now",
    params(("dataset" = String, Path, description = "`name` or `name@version`"), MapQuery), responses(
    (status = 200, body = Map),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 404, body = ErrorBody, description = "no such dataset"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn map(context: Shared<Context>, name: Named, query: Asked<MapQuery>) -> Answer<Map> {
    let query = query?.0;
    query.check()?;
    let picture = context.pictures.get(&context.driver, name?.0).await?;
    Ok(Json(picture.map(&query)))
}

/// Which shards, in which order.
#[derive(Deserialize, IntoParams, Default)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShardQuery {
    /// Items to leave out at the front.
    #[param(maximum = 1_000_000_000)]
    offset: Option<u32>,
    /// Items to return at most.
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<u32>,
    /// Only shards whose key contains this; case does not matter.
    #[param(max_length = 256)]
    q: Option<String>,
    /// Only shards that are in one of these states on some node, with commas.
    #[param(max_length = 256)]
    state: Option<String>,
    /// In which order.
    #[param(inline)]
    order: Option<ShardOrder>,
}

/// The shards of a version, rarest first
#[utoipa::path(get, path = "/api/v1/datasets/{dataset}/shards", tag = "now",
    params(("dataset" = String, Path, description = "`name` or `name@version`"), ShardQuery), responses(
    (status = 200, body = Page<ShardItem>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 404, body = ErrorBody, description = "no such dataset"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn shards(context: Shared<Context>, name: Named, query: Asked<ShardQuery>) -> Answer<Page<ShardItem>> {
    let ShardQuery { offset, limit, q, state, order } = query?.0;
    let paging = checked(Paging { offset, limit, q, state })?;
    let picture = context.pictures.get(&context.driver, name?.0).await?;
    Ok(Json(picture.shards(&paging, order.unwrap_or_default())))
}

/// The nodes of a version, those that are not ready first
#[utoipa::path(get, path = "/api/v1/datasets/{dataset}/nodes", tag = "now",
    params(("dataset" = String, Path, description = "`name` or `name@version`"), Paging), responses(
    (status = 200, body = Page<ReplicaItem>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 404, body = ErrorBody, description = "no such dataset"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn replicas(context: Shared<Context>, name: Named, paging: Asked<Paging>) -> Answer<Page<ReplicaItem>> {
    let (name, paging) = (name?.0, checked(paging?.0)?);
    let page = context.driver.call(move |state, now| {
        let dataset = state.find_dataset(&name)?;
        Ok::<_, RequestError>(state.replica_list(now, dataset, &paging))
    });
    Ok(Json(page.await??))
}

/// What moves of a version now; `state`: `receiving`, `queued`, `origin` or `peer`
#[utoipa::path(get, path = "/api/v1/datasets/{dataset}/transfers", tag = "now",
    params(("dataset" = String, Path, description = "`name` or `name@version`"), Paging), responses(
    (status = 200, body = Page<TransferItem>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 404, body = ErrorBody, description = "no such dataset"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn transfers(context: Shared<Context>, name: Named, paging: Asked<Paging>) -> Answer<Page<TransferItem>> {
    let paging = checked(paging?.0)?;
    Ok(Json(context.pictures.get(&context.driver, name?.0).await?.transfers(&paging)))
}

/// Nodes, those that are not up first
#[utoipa::path(get, path = "/api/v1/nodes", tag = "now", params(Paging), responses(
    (status = 200, body = Page<NodeStatus>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn nodes(context: Shared<Context>, paging: Asked<Paging>) -> Answer<Page<NodeStatus>> {
    let paging = checked(paging?.0)?;
    Ok(Json(context.driver.call(move |state, now| state.node_list(now, &paging)).await?))
}

/// One node: disk, links, transfers, versions, and where it differs from the others
#[utoipa::path(get, path = "/api/v1/nodes/{node}", tag = "now",
    params(("node" = String, Path, description = "its name")), responses(
    (status = 200, body = NodeDetail),
    (status = 400, body = ErrorBody, description = "the path makes no sense"),
    (status = 404, body = ErrorBody, description = "no such node"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn node(context: Shared<Context>, name: Named) -> Answer<NodeDetail> {
    let name = name?.0;
    let asked = name.clone();
    let found = context.driver.call(move |state, now| {
        let node = state.nodes.find(&asked)?;
        Some(state.node_detail(now, node))
    });
    let unknown = || RequestError::UnknownNodes { names: vec![crate::nodes::short(&name)] };
    Ok(Json(found.await?.ok_or_else(unknown)?))
}

/// Stages, those that run first
#[utoipa::path(get, path = "/api/v1/stages", tag = "now", params(Paging), responses(
    (status = 200, body = Page<StageStatus>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn stages(context: Shared<Context>, paging: Asked<Paging>) -> Answer<Page<StageStatus>> {
    let paging = checked(paging?.0)?;
    Ok(Json(context.driver.call(move |state, now| state.stage_list(now, &paging)).await?))
}

/// Jobs of a batch scheduler, those that wait first
#[utoipa::path(get, path = "/api/v1/jobs", tag = "now", params(Paging), responses(
    (status = 200, body = Page<Job>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn jobs(context: Shared<Context>, paging: Asked<Paging>) -> Answer<Page<Job>> {
    let paging = checked(paging?.0)?;
    Ok(Json(context.driver.call(move |state, now| state.job_list(now, &paging)).await?))
}

/// Which events.
#[derive(Deserialize, IntoParams, Default)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventQuery {
    /// Items to leave out at the front.
    #[param(maximum = 1_000_000_000)]
    offset: Option<u32>,
    /// Items to return at most.
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<u32>,
    /// Only events whose text contains this; case does not matter.
    #[param(max_length = 256)]
    q: Option<String>,
    /// Only these kinds, with commas.
    #[param(max_length = 256)]
    kind: Option<String>,
    /// Only these severities (`info`, `warning`, `error`), with commas.
    #[param(max_length = 256)]
    severity: Option<String>,
    /// Only about this node.
    #[param(max_length = 256)]
    node: Option<String>,
    /// Only about this version, `name@version`.
    #[param(max_length = 512)]
    dataset: Option<String>,
}

/// What happened, newest first; durable within a bound
#[utoipa::path(get, path = "/api/v1/events", tag = "past", params(EventQuery), responses(
    (status = 200, body = Page<Event>),
    (status = 400, body = ErrorBody, description = "the query makes no sense"),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn events(context: Shared<Context>, query: Asked<EventQuery>) -> Answer<Page<Event>> {
    let EventQuery { offset, limit, q, kind, severity, node, dataset } = query?.0;
    for (field, text, most) in [
        ("severity", &severity, FILTER_CHARS_MAX),
        ("node", &node, FILTER_CHARS_MAX),
        ("dataset", &dataset, 2 * FILTER_CHARS_MAX),
    ] {
        short_enough(field, text.as_deref(), most)?;
    }
    let filter = EventFilter {
        paging: checked(Paging { offset, limit, q, state: kind })?,
        severity: severity.unwrap_or_default(),
        node: node.unwrap_or_default(),
        dataset: dataset.unwrap_or_default(),
    };
    Ok(Json(context.driver.call(move |state, _| state.event_list(&filter)).await?))
}

/// The newest lines of the audit log as they are kept, oldest first
#[utoipa::path(get, path = "/api/v1/audit", tag = "past", responses(
    (status = 200, body = Vec<serde_json::Value>),
    (status = 503, body = ErrorBody, description = "the coordinator stops"),
))]
async fn audit(context: Shared<Context>) -> Answer<Vec<serde_json::Value>> {
    let lines = context.store.audit(AUDIT_LINES).await.map_err(RequestError::from)?;
    Ok(Json(lines.iter().filter_map(|l| serde_json::from_str(l).ok()).collect()))
}

fn checked(paging: Paging) -> Result<Paging, HttpError> {
    paging.check()?;
    Ok(paging)
}

/// All documents, and their description.
pub(crate) fn documents(driver: DriverHandle, store: StoreHandle) -> (Router, utoipa::openapi::OpenApi) {
    let context = Context { driver, store, pictures: Arc::default() };
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status))
        .routes(routes!(overview))
        .routes(routes!(alarms))
        .routes(routes!(throughput))
        .routes(routes!(datasets))
        .routes(routes!(dataset))
        .routes(routes!(map))
        .routes(routes!(shards))
        .routes(routes!(replicas))
        .routes(routes!(transfers))
        .routes(routes!(nodes))
        .routes(routes!(node))
        .routes(routes!(stages))
        .routes(routes!(jobs))
        .routes(routes!(events))
        .routes(routes!(audit))
        .split_for_parts();
    (router.with_state(context), description)
}
