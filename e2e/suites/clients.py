"""Owns the client programs: what each needs, how it is run, and that every step of the scenario was proved.

The scenario is the same in all languages (README.md tells it); a program prints `ok <step>` or
`not ok <step> <why>`. A step that it does not print has failed.
"""
import os
import subprocess
import time

from lib import install
from lib.cases import program
from lib.process import Failure

STEPS = ["connect", "produce", "consume", "json", "ack", "lpop", "ack-elsewhere", "timeout",
         "resume-unacked", "resume-acked"]
CLIENTS = install.E2E / "clients"


def redis_cli():
    install.debian("redis-tools")
    return ["bash", CLIENTS / "redis-cli" / "worker.sh"], {}


def redis_py():
    return [install.python_packages(), "-B", CLIENTS / "redis-py" / "worker.py"], {}


def redis_rb():
    install.debian("ruby-redis")
    return ["ruby", CLIENTS / "redis-rb" / "worker.rb"], {}


def npm(name):
    def prepare():
        return ["node", CLIENTS / name / "worker.js"], {"NODE_PATH": str(install.npm_packages(name))}
    return prepare


def java(name):
    return lambda: (install.java_program(name, "Worker"), {})


def php(name, *packages):
    def prepare():
        install.debian("php-cli", *packages)
        return ["php", CLIENTS / name / "worker.php"], {}
    return prepare


PROGRAMS = {
    "redis-cli": (redis_cli, [*STEPS, "resp3"]),
    "redis-py": (redis_py, STEPS),
    "redis-rb": (redis_rb, STEPS),
    "ioredis": (npm("ioredis"), STEPS),
    "node-redis": (npm("node-redis"), STEPS),
    "jedis": (java("jedis"), STEPS),
    "lettuce": (java("lettuce"), STEPS),
    "go-redis": (lambda: ([install.go_program("go-redis")], {}), STEPS),
    "redis-rs": (lambda: ([install.cargo_program("redis-rs")], {}), STEPS),
    "phpredis": (php("phpredis", "php-redis"), STEPS),
    "predis": (php("predis", "php-predis"), STEPS),
}


def run_program(command, settings, folder, seconds=90):
    """Runs a client program; returns ({step: why it failed, or None}, what went wrong with the program itself)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=seconds, cwd=folder, env={**os.environ, **settings})
        output, errors, trouble = done.stdout, done.stderr, None
        if done.returncode != 0:
            trouble = f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, errors, trouble = late.stdout or b"", late.stderr or b"", f"not done within {seconds} s"
    results = {}
    for line in output.decode("utf-8", "replace").splitlines():
        if line.startswith("ok "):
            results[line[3:].strip()] = None
        elif line.startswith("not ok "):
            step, _, why = line[7:].partition(" ")
            results[step] = why or "no reason given"
    tail = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    if trouble and tail:
        trouble += ": " + " / ".join(line.strip() for line in tail[:4])[:500]
    return results, trouble


def declare(name, prepare, steps, fill=None):
    """`fill` stores what the program finds in its topic, and returns more settings for it."""
    @program(name)
    def client(context):
        started = time.monotonic()
        try:
            command, settings = prepare()
            topic = context.topic(name)
            settings = {**settings, "KARROW_PORT": str(context.karrow.port), "TOPIC": topic,
                        "GROUP": context.unique("group"), **(fill(context, topic) if fill else {})}
        except Failure as failure:
            for step in steps:
                context.report(step, f"could not be tried: {failure}")
            return
        results, trouble = run_program(command, settings, context.folder)
        for step in steps:
            if step in results:
                context.report(step, results[step])
            else:
                context.report(step, f"not reached; the program ended early: {trouble or 'without an error'}")
        if trouble and all(why is None for why in results.values()) and len(results) == len(steps):
            raise Failure(f"all steps passed, but {trouble}")
        took = time.monotonic() - started
        if took > 60:
            print(f"        ({name} took {took:.0f} s)", flush=True)


for name, (prepare, steps) in PROGRAMS.items():
    declare(name, prepare, steps)
