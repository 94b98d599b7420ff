//! T*: no schedule delivers a dataset sooner.

/// The lower bound of a stage in seconds, and what sets it: `origin`, `link` or `disk`.
///
/// Every byte leaves the origin once (D/S); every node takes every byte in and writes it (D/min(B, W)); all uplinks
/// and the origin together must carry N copies (N·D/(S + N·B)).
pub fn lower_bound(bytes: u64, nodes: u32, origin: f64, link: f64, disk: f64) -> (f64, &'static str) {
    let (d, n) = (bytes as f64, f64::from(nodes));
    let bounds =
        [(d / origin, "origin"), (d / link, "link"), (d / disk, "disk"), (n * d / (origin + n * link), "link")];
    bounds.into_iter().fold((0.0, "origin"), |worst, bound| if bound.0 > worst.0 { bound } else { worst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_part_sets_it() {
        assert_eq!(lower_bound(100, 10, 1.0, 50.0, 50.0), (100.0, "origin"));
        assert_eq!(lower_bound(100, 10, 50.0, 1.0, 50.0).1, "link");
        assert_eq!(lower_bound(100, 10, 50.0, 50.0, 1.0), (100.0, "disk"));
        // One node: the uplinks do not help.
        assert_eq!(lower_bound(100, 1, 50.0, 50.0, 90.0).0, 2.0);
    }
}
