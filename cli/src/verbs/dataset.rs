//! `dataset add | index | ls | show | rm`.

use millstream_proto::v1::{
    AddDatasetRequest, DatasetInfo, ListDatasetsRequest, RemoveDatasetRequest, ShardInfo, ShowDatasetRequest,
};
use millstream_types::id::{DatasetName, DatasetSelector, Version};
use millstream_types::size::format_size;
use serde_json::{Value, json};

use crate::args::{AddArgs, ClientArgs, DatasetVerb, Kind};
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::{SHOW_PAGE_SHARDS, SHOW_SHARDS_MAX};
use crate::output::{self, Progress, Table};

mod index;

/// Does what was asked.
pub async fn run(verb: DatasetVerb) -> Result<()> {
    match verb {
        DatasetVerb::Add(args) => add(args).await,
        DatasetVerb::Index(args) => index::run(args).await,
        DatasetVerb::Ls(client) => ls(&client).await,
        DatasetVerb::Show { dataset, client } => show(&dataset, &client).await,
        DatasetVerb::Rm { dataset, client } => rm(&dataset, &client).await,
    }
}

/// Refuses what is no dataset before anyone is asked.
pub fn check_selector(text: &str) -> Result<()> {
    match text.parse::<DatasetSelector>() {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::usage(text, error).next("write NAME or NAME@VERSION")),
    }
}

fn info_json(info: &DatasetInfo) -> Value {
    json!({
        "name": info.name, "version": info.version, "digest": info.digest, "shards": info.shards, "bytes": info.bytes,
        "origin_url": info.origin_url, "origin_verified": info.origin_verified, "kind": info.kind,
        "run": (!info.run.is_empty()).then_some(&info.run),
        "step": (!info.run.is_empty()).then_some(info.step),
        "created_unix_s": info.created_unix_s, "piece_bytes": info.piece_bytes, "indexed": info.indexed,
    })
}

fn shard_json(shard: &ShardInfo) -> Value {
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "key": shard.key, "bytes": shard.len, "etag": known(&shard.etag), "version_id": known(&shard.version_id),
        "checksum": known(&shard.checksum),
    })
}

async fn add(args: AddArgs) -> Result<()> {
    let session = Session::new(&args.client)?;
    args.name.parse::<DatasetName>().map_err(|e| Failure::usage(&args.name, e).next("choose another name"))?;
    if let Some(version) = &args.version {
        version.parse::<Version>().map_err(|e| Failure::usage(version, e).next("choose another --version"))?;
    }
    let request = AddDatasetRequest {
        name: args.name.clone(),
        url: args.url.clone(),
        version: args.version.unwrap_or_default(),
        kind: if args.kind == Kind::Checkpoint { "checkpoint" } else { "dataset" }.into(),
        run: args.run.unwrap_or_default(),
        step: args.step.unwrap_or_default(),
    };
    let mut steps = session
        .stream(&args.url, |mut client| {
            let request = request.clone();
            async move { client.add_dataset(request).await }
        })
        .await?;
    let mut progress = Progress::new(session.json);
    while let Some(step) = steps.message().await.map_err(|s| Failure::from_status(&args.url, &s))? {
        let Some(info) = step.done else {
            let words = format!(
                "{} objects, {} listed, {} checksums read",
                step.objects_listed,
                format_size(step.bytes_listed),
                step.checksums_read
            );
            progress.show(step.checksums_read, step.objects_listed, &words);
            continue;
        };
        progress.finish();
        if session.json {
            let mut document = info_json(&info);
            document["already_there"] = step.already_there.into();
            return output::json(&document);
        }
        let verb = if step.already_there { "already there:" } else { "added" };
        output::note(&format!(
            "{verb} {}@{}: {} shards, {}{}",
            info.name,
            info.version,
            info.shards,
            format_size(info.bytes),
            if info.origin_verified { "" } else { "; the origin has no checksum for some shards" },
        ));
        return output::line(&format!("{}@{}", info.name, info.version));
    }
    Err(Failure::new(Code::Unreachable, &args.url, "the coordinator ended the registration without a result")
        .next("see the coordinator's log, then try again"))
}

async fn ls(args: &ClientArgs) -> Result<()> {
    let session = Session::new(args)?;
    let reply = session
        .call("datasets", |mut client| async move { client.list_datasets(ListDatasetsRequest {}).await })
        .await?;
    if session.json {
        return output::json(&json!({"datasets": reply.datasets.iter().map(info_json).collect::<Vec<_>>()}));
    }
    let mut table = Table::new(&["DATASET", ">SHARDS", ">SIZE", "ORIGIN CHECKSUMS", "URL"]);
    for info in &reply.datasets {
        table.row([
            format!("{}@{}", info.name, info.version),
            info.shards.to_string(),
            format_size(info.bytes),
            if info.origin_verified { "all" } else { "missing" }.into(),
            info.origin_url.clone(),
        ]);
    }
    table.print()
}

async fn show(dataset: &str, args: &ClientArgs) -> Result<()> {
    check_selector(dataset)?;
    let session = Session::new(args)?;
    let mut shards = Vec::new();
    let mut selector = dataset.to_owned();
    let info = loop {
        let request =
            ShowDatasetRequest { dataset: selector, page_offset: shards.len() as u32, page_limit: SHOW_PAGE_SHARDS };
        let page = session
            .call(dataset, |mut client| {
                let request = request.clone();
                async move { client.show_dataset(request).await }
            })
            .await?;
        let info = page.info.ok_or_else(|| Failure::other(dataset, "the coordinator's answer has no dataset"))?;
        // Later pages are of the version that the first one was of, whatever is registered meanwhile.
        selector = format!("{}@{}", info.name, info.version);
        let last = page.shards.is_empty();
        shards.extend(page.shards);
        let enough = !session.json && shards.len() > SHOW_SHARDS_MAX;
        if last || enough || shards.len() as u64 >= info.shards {
            break info;
        }
    };
    if session.json {
        let shards: Vec<Value> = shards.iter().map(shard_json).collect();
        return output::json(&json!({"dataset": info_json(&info), "shards": shards}));
    }
    show_text(&info, &shards)
}

fn show_text(info: &DatasetInfo, shards: &[ShardInfo]) -> Result<()> {
    output::line(&format!("{}@{}  {}", info.name, info.version, info.origin_url))?;
    output::line(&format!("digest   {}", info.digest))?;
    output::line(&format!("size     {} in {} shards", format_size(info.bytes), info.shards))?;
    output::line(&format!("pieces   {} each", format_size(info.piece_bytes)))?;
    if info.kind == "checkpoint" {
        output::line(&format!("written  by run {} at step {}", info.run, info.step))?;
    }
    let verified = if info.origin_verified { "the origin vouches for every shard" } else { "origin-unverified" };
    output::line(&format!("origin   {verified}\n"))?;
    let mut table = Table::new(&["KEY", ">SIZE", "CHECKSUM"]);
    for shard in shards.iter().take(SHOW_SHARDS_MAX) {
        let checksum = if shard.checksum.is_empty() { "none" } else { &shard.checksum };
        table.row([shard.key.clone(), format_size(shard.len), checksum.to_owned()]);
    }
    table.print()?;
    let more = info.shards.saturating_sub(SHOW_SHARDS_MAX as u64);
    if more > 0 {
        output::line(&format!("… and {more} more; --json shows all"))?;
    }
    Ok(())
}

async fn rm(dataset: &str, args: &ClientArgs) -> Result<()> {
    check_selector(dataset)?;
    let session = Session::new(args)?;
    let reply = session
        .call(dataset, |mut client| {
            let request = RemoveDatasetRequest { dataset: dataset.to_owned() };
            async move { client.remove_dataset(request).await }
        })
        .await?;
    if session.json {
        return output::json(&json!({"removed": reply.removed}));
    }
    for removed in &reply.removed {
        output::note(&format!("removed {removed}"));
    }
    Ok(())
}
