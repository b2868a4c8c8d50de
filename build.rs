//! Finds DuckDB's library, so that programs are linked to it and find it when they run.

use std::env;
use std::path::PathBuf;

/// As in tools/duckdb, which puts it there.
const FOLDER: &str = "karrow/duckdb-2.0.0.1";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    if env::var_os("CARGO_FEATURE_BUNDLED_DUCKDB").is_some() {
        return;
    }
    let is_macos = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos");
    let name = if is_macos { "libduckdb.dylib" } else { "libduckdb.so" };
    let folder = folder();
    let library = folder.join(name);
    println!("cargo:rerun-if-changed={}", library.display());
    if !library.exists() {
        println!(
            "cargo:error=DuckDB's library is missing: there is no {}. `tools/duckdb` puts it there (so does `make build`); \
             --features bundled-duckdb compiles DuckDB instead, in about half an hour",
            library.display()
        );
        return;
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
    // Installed, the library is beside the program's folder; until then it is where it was found.
    let installed = if is_macos { "@executable_path/../lib" } else { "$ORIGIN/../lib" };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{installed}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
}

fn folder() -> PathBuf {
    let given = env::var_os("DUCKDB_LIB_DIR").map(PathBuf::from);
    given.unwrap_or_else(|| {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        cache.unwrap_or_else(|| home.join(".cache")).join(FOLDER)
    })
}
