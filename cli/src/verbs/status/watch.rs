//! `status --watch` on a terminal: the same documents as the status page, once a second.
//!
//! Participants: [`screen`](super::screen) decides what is shown and what a key means, without I/O; this shell owns
//! the terminal, the keyboard and the calls. Goals: the terminal is as it was, however this ends; a coordinator that
//! is away is said, and comes back by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_proto::v1::ViewRequest;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::screen::{Next, Screen, View};
use crate::client::Session;
use crate::failure::{Failure, Result};
use crate::limits::{KEYS_MAX, WATCH_EVERY};

/// How long the keyboard is looked at before it is asked whether anybody still listens.
const KEY_PATIENCE: Duration = Duration::from_millis(100);

/// Shows `view` and what is reached from there, until the person has seen enough.
pub async fn run(session: &Session, view: View) -> Result<()> {
    let mut keys = keyboard()?;
    let mut terminal = ratatui::try_init()
        .map_err(|e| Failure::other("terminal", e).next("leave --watch out, or redirect the output"))?;
    let _restored = Restored;
    show(session, view, &mut terminal, &mut keys).await
}

/// Gives the terminal back, also when a signal ends everything.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys and changes of size, from a thread of their own: reading them blocks.
fn keyboard() -> Result<mpsc::Receiver<Event>> {
    let (out, keys) = mpsc::channel(KEYS_MAX);
    let read = move || {
        while !out.is_closed() {
            match event::poll(KEY_PATIENCE) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if out.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    std::thread::Builder::new().name("keyboard".into()).spawn(read).map_err(|e| Failure::other("keyboard", e))?;
    Ok(keys)
}

async fn show(
    session: &Session,
    view: View,
    terminal: &mut ratatui::DefaultTerminal,
    keys: &mut mpsc::Receiver<Event>,
) -> Result<()> {
    let mut screen = Screen::new(view);
    let mut ticks = interval(WATCH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: Option<Instant> = None;
    loop {
        let age = seen.map(|at| at.elapsed());
        terminal.draw(|frame| screen.draw(frame, age)).map_err(|e| Failure::other("terminal", e))?;
        let size = terminal.size().map(|s| (s.width, s.height)).unwrap_or((80, 24));
        tokio::select! {
            key = keys.recv() => match key {
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match screen.key(key) {
                    Next::Quit => return Ok(()),
                    Next::Stay => {}
                    Next::Look => ticks.reset_immediately(),
                },
                Some(_) => {}
            },
            looked = look(session, &screen, size, &mut ticks) => match looked {
                Ok(documents) => {
                    seen = Some(Instant::now());
                    screen.take(documents);
                }
                Err(failure) => screen.lost(failure.to_string()),
            },
        }
    }
}

/// Waits for the next tick, and asks for everything that the screen shows.
async fn look(
    session: &Session,
    screen: &Screen,
    size: (u16, u16),
    ticks: &mut tokio::time::Interval,
) -> Result<BTreeMap<String, Value>> {
    ticks.tick().await;
    let mut documents = BTreeMap::new();
    for (name, path) in screen.paths(size) {
        documents.insert(name.to_owned(), view(session, &path).await?);
    }
    Ok(documents)
}

/// A document of the coordinator's HTTP API.
pub async fn view(session: &Session, path: &str) -> Result<Value> {
    let reply = session
        .call("status", |mut client| {
            let request = ViewRequest { path: path.to_owned() };
            async move { client.view(request).await }
        })
        .await?;
    serde_json::from_str(&reply.json).map_err(|e| Failure::other("status", format!("the coordinator's document: {e}")))
}
