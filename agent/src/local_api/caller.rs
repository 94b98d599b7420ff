//! Who is at the other end of the socket, in words for people: `python3 (pid 4711, ann)`.

use tokio::net::UnixStream;

/// The process as the kernel names it; less where it does not.
pub(super) fn words(stream: &UnixStream) -> String {
    let Ok(peer) = stream.peer_cred() else { return "an unknown process".to_owned() };
    let user = std::fs::read_to_string("/etc/passwd").ok().and_then(|text| user(&text, peer.uid()));
    let user = user.unwrap_or_else(|| format!("user {}", peer.uid()));
    // Of another namespace of processes, there is no number.
    let Some(pid) = peer.pid().filter(|&pid| pid > 0) else { return format!("a process of {user}") };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim_end();
    format!("{} (pid {pid}, {user})", if name.is_empty() { "a process" } else { name })
}

/// The name of a user in the text of `/etc/passwd`.
fn user(text: &str, uid: u32) -> Option<String> {
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    text.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_where_the_file_has_them() {
        let text = "root:x:0:0::/root:/bin/sh\n# a remark\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n";
        assert_eq!((user(text, 1000).as_deref(), user(text, 0).as_deref()), (Some("ann"), Some("root")));
        assert_eq!(user(text, 7), None);
    }

    #[tokio::test]
    async fn the_other_end_is_named() {
        let (one, _other) = UnixStream::pair().unwrap();
        let words = words(&one);
        assert!(words.contains(&format!("(pid {}, ", std::process::id())), "{words}");
    }
}
