//! The layering of DESIGN's picture, kept by reading the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up: a module uses only modules of lines above its own.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["config", "metrics", "shutdown"],
    &["kafka"],
    &["decode"],
    &["encode"],
    &["stream"],
    &["sql"],
    // The edges never use one another; these are what they share.
    &["serve/listener", "serve/glob"],
    &["serve/resp", "serve/flight", "serve/http"],
    &["banner", "cli", "client"],
    &["app"],
];

/// Which crates may be named where.
const CRATES: &[(&[&str], &[&str])] = &[
    // librdkafka itself judges the options of its file.
    (&["rdkafka", "rdkafka_sys"], &["src/kafka", "src/config/librdkafka.rs"]),
    (
        &[
            "tansu_broker",
            "tansu_storage",
            "tansu_service",
            "tansu_sans_io",
            "rama",
            "libsql",
            "snap",
        ],
        &["src/kafka/embedded"],
    ),
    (&["axum", "hyper", "hyper_util", "tokio_io_timeout"], &["src/serve/http"]),
    (&["moka"], &["src/sql/queries.rs", "src/serve/flight/sql/prepared.rs"]),
    (&["duckdb"], &["src/sql"]),
    (&["protox", "prost_reflect"], &["src/decode/protobuf"]),
    (&["reqwest"], &["src/decode/schema_registry.rs"]),
    (&["comfy_table", "indicatif", "parquet", "terminal_size"], &["src/client"]),
    (&["redis_protocol"], &["src/serve/resp"]),
    (&["tonic", "arrow_flight"], &["src/serve/flight", "src/client"]),
    (&["prost"], &["src/serve/flight", "src/client", "src/decode/protobuf"]),
    (
        &["clap"],
        &[
            "src/config/flags",
            "src/config/formats.rs",
            "src/config/streams.rs",
            "src/config/environment.rs",
            "src/main.rs",
        ],
    ),
];

fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join("src"), &mut found);
    assert!(found.len() > 5, "the walk finds the sources");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// The code of a file: without comments, and without what follows `#[cfg(test)]`.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + word.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.' || c == '"')
            && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}

#[test]
fn every_file_says_what_it_owns() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} does not open with //!");
    }
}

#[test]
fn crates_stay_in_their_folders() {
    for (name, text) in sources() {
        let code = code(&text);
        for (crates, places) in CRATES {
            if places.iter().any(|place| name.starts_with(place)) {
                continue;
            }
            for krate in *crates {
                assert!(!names(&code, krate), "{name} names {krate}, only {places:?} may");
            }
        }
    }
}

/// Where a path such as `serve/resp/command.rs` or `kafka` stands in [`LAYERS`].
fn layer(module: &str) -> Option<(usize, &'static str)> {
    LAYERS.iter().enumerate().find_map(|(height, modules)| {
        modules
            .iter()
            .find(|name| module == **name || module.starts_with(&format!("{name}/")))
            .map(|name| (height, *name))
    })
}

#[test]
fn modules_use_only_what_is_above_them() {
    for (name, text) in sources() {
        let module = name.trim_start_matches("src/").trim_end_matches(".rs");
        // The roots and pure parents join their children.
        let Some((height, own)) = layer(module) else {
            assert!(
                ["main", "lib", "serve"].contains(&module),
                "{name} has no place in LAYERS of tests/tidy.rs"
            );
            continue;
        };
        let code = code(&text);
        for (at, _) in code.match_indices("crate::") {
            let path: String = code[at + "crate::".len()..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
                .collect();
            let used = path.replace("::", "/");
            let Some((used_height, used_name)) = layer(&used) else { continue };
            assert!(
                used_name == own || used_height < height,
                "{name} uses crate::{path}: {own} must not know {used_name}"
            );
        }
    }
}
