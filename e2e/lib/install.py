"""Owns what the tests need from package registries: Debian, PyPI, npm, Maven, Go, crates.io.

Everything goes into one cache folder outside the checkout. Versions are pinned in the manifests and lock
files beside each client; a stamp (a hash of those files) says whether the cache is up to date. What cannot be
had is a Failure in plain words: the cases that need it then fail with that text, they are never skipped.
"""
import fcntl
import hashlib
import os
import pathlib
import shutil
import site
import sys
import tarfile
import venv

from .process import Failure, run

E2E = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = E2E.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "karrow" / "e2e"


def _stamped(folder, inputs, build):
    """Runs `build()` unless `folder` was built from these very inputs; two drivers at once wait for each other."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(str(path.relative_to(E2E)).encode() + b"\0" + path.read_bytes())
    stamp = folder / ".stamp"
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == digest.hexdigest()):
            build()
            stamp.write_text(digest.hexdigest())
    return folder


def program(name, how):
    """The path of a program that must already be there, or a Failure that says how to get it."""
    found = shutil.which(name)
    if not found:
        raise Failure(f"the program `{name}` is missing: {how}")
    return found


def debian(*packages):
    """Debian packages: installed when we are root, otherwise named."""
    if not shutil.which("dpkg-query"):
        raise Failure(f"this is not a Debian system; install by hand what its packages {', '.join(packages)} hold")

    def missing():
        absent = []
        for package in packages:
            try:
                if "ok installed" not in run(["dpkg-query", "-W", "-f=${Status}", package], "dpkg"):
                    absent.append(package)
            except Failure:
                absent.append(package)
        return absent

    absent = missing()
    if not absent:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *absent]
    if os.geteuid() != 0:
        raise Failure(f"Debian packages are missing: run `sudo {' '.join(install)}`")
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".apt.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        try:
            run(install, "apt", env=environment)
        except Failure:
            run(["apt-get", "update"], "apt", env=environment)
            run(install, f"installing {', '.join(absent)}", env=environment)


def python_packages(part=None):
    """The virtual environment with requirements.txt, or with <part>/requirements.txt; returns its Python and makes its
    packages importable here."""
    requirements = (E2E / part if part else E2E) / "requirements.txt"
    name = f"venv-{part}" if part else "venv"
    folder = CACHE / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"

    def build():
        venv.EnvBuilder(with_pip=True, clear=False).create(folder)
        run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements],
            "installing PyPI packages")
    _stamped(folder, [requirements], build)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if str(packages) not in sys.path:
        site.addsitedir(str(packages))
    return python


def npm_packages(name):
    """`npm ci` of clients/<name>; returns the folder to put into NODE_PATH."""
    npm = program("npm", "install Node.js 20 or newer with npm")
    source, folder = E2E / "clients" / name, CACHE / "npm" / name
    files = [source / "package.json", source / "package-lock.json"]

    def build():
        for file in files:
            shutil.copy(file, folder)
        run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", CACHE / "npm" / "_cache"],
            f"npm packages of {name}", cwd=folder)
    return _stamped(folder, files, build) / "node_modules"


def maven_jars(pom):
    """The jars of a pom.xml, copied into the cache; returns the folder."""
    maven = program("mvn", "install Maven (Debian package maven)")
    program("java", "install a JDK 17 or newer (Debian package openjdk-17-jdk-headless)")
    folder = CACHE / "jars" / pom.parent.name

    def build():
        lib = folder / "lib"
        shutil.rmtree(lib, ignore_errors=True)
        run([maven, "-B", "-q", "-f", pom, f"-Dmaven.repo.local={CACHE / 'm2'}",
             "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={lib}"],
            f"jars of {pom.parent.name}")
    return _stamped(folder, [pom], build) / "lib"


def schema_registry():
    """Apicurio Registry, unpacked; returns the jar to run."""
    archives = maven_jars(E2E / "registry" / "pom.xml")
    folder = CACHE / "registry"

    def build():
        for archive in archives.glob("*.tar.gz"):
            with tarfile.open(archive) as files:
                files.extractall(folder, filter="data")
    _stamped(folder, [E2E / "registry" / "pom.xml"], build)
    runners = list(folder.glob("*-runner.jar"))
    if len(runners) != 1:
        raise Failure(f"no runner in {folder}: {runners}")
    return runners[0]


def java_program(name, main, *options):
    """Compiles clients/<name>/*.java; returns the command that runs `main`."""
    source = E2E / "clients" / name
    jars = maven_jars(source / "pom.xml")
    javac = program("javac", "install a JDK 17 or newer (Debian package openjdk-17-jdk-headless)")
    files = sorted(source.glob("*.java"))
    folder = CACHE / "classes" / name

    def build():
        run([javac, "-encoding", "UTF-8", "-cp", f"{jars}/*", "-d", folder, *files], f"compiling {name}")
    _stamped(folder, [source / "pom.xml", *files], build)
    return ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx128m", *options,
            "-cp", f"{folder}:{jars}/*", main]


def go_program(name):
    """`go build` of clients/<name>; returns the binary."""
    go = program("go", "install Go 1.24 or newer")
    source, folder = E2E / "clients" / name, CACHE / "go" / "bin" / name
    environment = dict(os.environ, GOMODCACHE=str(CACHE / "go" / "mod"), GOCACHE=str(CACHE / "go" / "build"),
                       GOFLAGS="-mod=readonly -modcacherw")

    def build():
        run([go, "build", "-o", folder / name, "."], f"building {name}", cwd=source, env=environment)
    return _stamped(folder, [source / "go.mod", source / "go.sum", *sorted(source.glob("*.go"))], build) / name


def cargo_program(name):
    """`cargo build` of the separate workspace clients/<name>; returns the binary."""
    cargo = program("cargo", "install Rust (https://rustup.rs)")
    source, folder = E2E / "clients" / name, CACHE / "cargo" / name
    environment = dict(os.environ, CARGO_TARGET_DIR=str(folder))

    def build():
        run([cargo, "build", "-q", "--locked", "--manifest-path", source / "Cargo.toml"],
            f"building {name}", env=environment)
    files = [source / "Cargo.toml", source / "Cargo.lock", *sorted((source / "src").glob("*.rs"))]
    return _stamped(folder, files, build) / "debug" / f"e2e-{name}"


def karrow_binary():
    """KARROW_BIN, or a release build of this checkout."""
    given = os.environ.get("KARROW_BIN")
    if given:
        if not os.access(given, os.X_OK):
            raise Failure(f"KARROW_BIN={given} is not an executable file")
        return pathlib.Path(given).resolve()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or CACHE.parent / "target")
    cargo = program("cargo", "install Rust (https://rustup.rs)")
    print("building karrow (cargo build --release)", flush=True)
    run([cargo, "build", "--release", "--locked"], "building karrow", cwd=REPOSITORY,
        env=dict(os.environ, CARGO_TARGET_DIR=str(target)), seconds=7200)
    return target / "release" / "karrow"
