//! The client of the agent's Unix socket: JSON lines, as `docs/reference/socket.md` says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::failure::{Code, Failure, Result};
use crate::limits::{SOCKET_REPLY_BYTES_MAX, SOCKET_TIMEOUT};

/// One connection to the local agent.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Agent {
    /// Connects.
    pub async fn connect(path: &Path) -> Result<Agent> {
        let failed = |code, reason: String| Failure::new(code, format!("agent at {}", path.display()), reason);
        let next = "is the agent running here? name its socket with --socket or MILLSTREAM_SOCKET";
        match tokio::time::timeout(SOCKET_TIMEOUT, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Agent { path: path.to_owned(), stream: BufReader::new(stream) }),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(failed(Code::Denied, format!("you may not use its socket: {e}"))
                    .next("ask to be put into the group that owns it; verified files can be read without the socket"))
            }
            Ok(Err(e)) => Err(failed(Code::Unreachable, format!("cannot connect: {e}")).next(next)),
            Err(_) => Err(failed(Code::Unreachable, "no answer".into()).next(next)),
        }
    }

    /// Who is there: the reply of `hello`.
    pub async fn hello(&mut self) -> Result<Value> {
        self.call("agent", json!({"op": "hello"})).await
    }

    /// One quick question about `thing`.
    pub async fn call(&mut self, thing: &str, request: Value) -> Result<Value> {
        self.stream(thing, request, Some(SOCKET_TIMEOUT), |_| Ok(())).await
    }

    /// A request whose progress lines are handed to `progress`; `silence` is the longest wait between two lines.
    pub async fn stream(
        &mut self,
        thing: &str,
        request: Value,
        silence: Option<Duration>,
        mut progress: impl FnMut(&Value) -> Result<()>,
    ) -> Result<Value> {
        let mut text = request.to_string();
        text.push('\n');
        let sent = self.stream.get_mut().write_all(text.as_bytes()).await;
        sent.map_err(|e| self.lost(format!("the connection broke: {e}")))?;
        loop {
            let reply = self.line(silence).await?;
            if let Some(step) = reply.get("progress") {
                progress(step)?;
                continue;
            }
            return match reply.get("ok").and_then(Value::as_bool) {
                Some(true) => Ok(reply),
                Some(false) => Err(refused(thing, &reply)),
                None => Err(self.lost(format!("an answer that is not of this protocol: {reply}"))),
            };
        }
    }

    async fn line(&mut self, silence: Option<Duration>) -> Result<Value> {
        let mut line = String::new();
        let mut limited = (&mut self.stream).take(SOCKET_REPLY_BYTES_MAX);
        let read = limited.read_line(&mut line);
        let read = match silence {
            Some(silence) => match tokio::time::timeout(silence, read).await {
                Ok(read) => read,
                Err(_) => return Err(self.lost(format!("no answer within {silence:?}"))),
            },
            None => read.await,
        };
        match read {
            Ok(0) => Err(self.lost("the agent hung up".into())),
            Ok(_) => serde_json::from_str(&line).map_err(|e| self.lost(format!("an answer that is not JSON: {e}"))),
            Err(e) => Err(self.lost(format!("the connection broke: {e}"))),
        }
    }

    fn lost(&self, reason: String) -> Failure {
        Failure::new(Code::Unreachable, format!("agent at {}", self.path.display()), reason)
            .next("see the agent's log, then try again")
    }
}

fn refused(thing: &str, reply: &Value) -> Failure {
    let text = |key| reply.get(key).and_then(Value::as_str);
    let code = Code::from_number(reply.get("code").and_then(Value::as_u64).unwrap_or(1));
    let failure = Failure::new(code, thing, text("error").unwrap_or("the agent refused, without a reason"));
    match (text("next"), code) {
        (Some(next), _) => failure.next(next),
        (None, Code::Unknown) => failure.next(format!("`millstream stage {thing}` brings it here")),
        (None, Code::NotReady) => failure.next(format!("`millstream wait {thing}`")),
        (None, _) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A server that answers each connection's first line with `replies`.
    fn server(dir: &Path, replies: &'static str) -> PathBuf {
        let path = dir.join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                assert!(serde_json::from_str::<Value>(&line).is_ok());
                stream.get_mut().write_all(replies.as_bytes()).await.unwrap();
            }
        });
        path
    }

    async fn ask(replies: &'static str) -> (Result<Value>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = server(dir.path(), replies);
        let mut agent = Agent::connect(&path).await.unwrap();
        let mut steps = 0;
        let counted = |_: &Value| {
            steps += 1;
            Ok(())
        };
        let reply = agent.stream("d@v", json!({"op": "wait"}), None, counted).await;
        (reply, steps)
    }

    #[tokio::test]
    async fn progress_then_the_reply() {
        let (reply, steps) = ask("{\"progress\":{}}\n{\"progress\":{}}\n{\"ok\":true,\"path\":\"/x\"}\n").await;
        assert_eq!((reply.unwrap()["path"].as_str(), steps), (Some("/x"), 2));
    }

    #[tokio::test]
    async fn refusals_keep_their_code() {
        let (reply, _) = ask("{\"ok\":false,\"code\":4,\"error\":\"2 of 4 shards\"}\n").await;
        let failure = reply.unwrap_err();
        assert_eq!((failure.code, failure.to_string().as_str()), (Code::NotReady, "d@v: 2 of 4 shards"));
    }

    #[tokio::test]
    async fn an_agent_that_hangs_up_or_babbles_is_unreachable() {
        for replies in ["", "what?\n", "{\"x\":1}\n"] {
            assert_eq!(ask(replies).await.0.unwrap_err().code, Code::Unreachable, "{replies:?}");
        }
        let missing = Agent::connect(Path::new("/nowhere/agent.sock")).await.unwrap_err();
        assert_eq!(missing.code, Code::Unreachable);
    }
}
