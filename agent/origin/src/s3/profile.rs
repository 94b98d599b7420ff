//! The shared files of the AWS tools (`~/.aws/credentials`, `~/.aws/config`), as far as they hold plain keys.
//!
//! `object_store` reads variables and asks the machine's metadata service; a laptop or a login node has a profile.
//! Profiles that assume roles or use SSO are left alone: such a user exports variables.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use crate::limits::PROFILE_BYTES_MAX;

/// Settings of the profile as `AWS_*` variables; none where variables name credentials already.
pub(super) fn read(vars: &[(String, String)]) -> Vec<(String, String)> {
    let get = |name: &str| vars.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.as_str());
    let elsewhere = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    ];
    if elsewhere.iter().any(|name| get(name).is_some()) {
        return Vec::new();
    }
    let profile = get("AWS_PROFILE").unwrap_or("default");
    let file = |variable: &str, name: &str| {
        let explicit = get(variable).map(PathBuf::from);
        let path = explicit.or_else(|| Some(PathBuf::from(get("HOME")?).join(".aws").join(name)))?;
        let mut text = String::new();
        std::fs::File::open(path).ok()?.take(PROFILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let mut found = BTreeMap::new();
    if let Some(text) = file("AWS_CONFIG_FILE", "config") {
        let section = if profile == "default" { "default".to_owned() } else { format!("profile {profile}") };
        found.extend(section_of(&text, &section));
    }
    if let Some(text) = file("AWS_SHARED_CREDENTIALS_FILE", "credentials") {
        found.extend(section_of(&text, profile));
    }
    let names = [
        ("aws_access_key_id", "AWS_ACCESS_KEY_ID"),
        ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
        ("aws_session_token", "AWS_SESSION_TOKEN"),
        ("region", "AWS_REGION"),
        ("endpoint_url", "AWS_ENDPOINT_URL"),
    ];
    let settings = names.into_iter().filter_map(|(key, name)| Some((name.to_owned(), found.remove(key)?)));
    settings.collect()
}

fn section_of(text: &str, section: &str) -> BTreeMap<String, String> {
    let mut inside = false;
    let mut out = BTreeMap::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.split_whitespace().eq(section.split_whitespace());
        } else if inside && !line.starts_with([' ', '\t', '#', ';']) {
            // Indented lines belong to nested settings (s3 = …), which are not ours.
            if let Some((key, value)) = trimmed.split_once('=') {
                out.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_fills_in_what_variables_leave_open() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        let credentials = "[default]\naws_access_key_id = A\naws_secret_access_key=B=\n[work]\naws_access_key_id=C\n";
        std::fs::write(dir.path().join(".aws/credentials"), credentials).unwrap();
        let config = "# x\n[default]\nregion=r1\n[profile  work]\nregion = r2\ns3 =\n  endpoint_url = nested\n";
        std::fs::write(dir.path().join(".aws/config"), config).unwrap();
        let var = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let home = var("HOME", dir.path().to_str().unwrap());
        let default = read(std::slice::from_ref(&home));
        assert!(default.contains(&var("AWS_ACCESS_KEY_ID", "A")) && default.contains(&var("AWS_REGION", "r1")));
        assert!(default.contains(&var("AWS_SECRET_ACCESS_KEY", "B=")));
        let work = read(&[home.clone(), var("AWS_PROFILE", "work")]);
        assert_eq!(work, [var("AWS_ACCESS_KEY_ID", "C"), var("AWS_REGION", "r2")]);
        assert!(read(&[home, var("AWS_ACCESS_KEY_ID", "mine")]).is_empty());
    }
}
