"""Watches against an emulated API server: normal life, then every fault."""

import threading
import time

import pytest
from deadlines import eventually
from tiny_cluster import config_map

from opd.cluster.errors import (
    GoneError,
)
from opd.cluster.resources import CONFIG_MAP
from opd.cluster.watching import follow, watch


class Follower:
    """Follows in a thread and keeps the last state."""

    def __init__(self, cluster, labels=""):
        self.states, self.stop = [], threading.Event()
        arguments = (CONFIG_MAP, labels, "", self.stop)
        self.thread = threading.Thread(target=self._run, args=(cluster, arguments), daemon=True)
        self.thread.start()

    def _run(self, cluster, arguments):
        for state in follow(cluster, *arguments):
            self.states.append({name: found.get("data") for name, found in state.items()})

    def sees(self, expected):
        eventually(lambda: self.states[-1:] == [expected])


@pytest.fixture
def follower(server, cluster):
    cluster.create(config_map("a"))
    follower = Follower(cluster)
    follower.sees({"a": {}})
    eventually(server.watches)
    yield follower
    follower.stop.set()
    server.end_watches()


def test_changes_are_followed(cluster, follower):
    cluster.apply(config_map("a", x="1"), "me")
    follower.sees({"a": {"x": "1"}})
    cluster.create(config_map("b"))
    follower.sees({"a": {"x": "1"}, "b": {}})
    cluster.delete(CONFIG_MAP, "a")
    follower.sees({"b": {}})


def test_a_watch_that_ends_is_opened_again_without_listing(server, cluster, follower):
    lists = len([path for _, path, _ in server.requests if "watch" not in path])
    server.end_watches()
    cluster.create(config_map("b"))
    follower.sees({"a": {}, "b": {}})
    requests = [path for method, path, _ in server.requests if method == "GET" and "watch" not in path]
    assert len(requests) == lists - 1  # all but the creation of the fixture


def test_an_expired_history_is_listed_again(server, cluster, follower):
    server.forget_history()
    cluster.create(config_map("b"))
    follower.sees({"a": {}, "b": {}})


def test_a_410_when_a_watch_opens_is_a_gone_error(server, cluster):
    cluster.create(config_map())
    server.forget_history()
    with pytest.raises(GoneError):
        list(watch(cluster, CONFIG_MAP, "1", seconds=1))


def test_a_watch_survives_a_restart_of_the_api_server(server, cluster, follower):
    server.stop()
    time.sleep(0.2)
    server.edit("configmaps", "a", lambda found: found["data"].update(x="1"))
    server.start()
    follower.sees({"a": {"x": "1"}})


@pytest.mark.parametrize("code", [401, 403, 429, 500])
def test_a_refused_watch_keeps_the_known_state_and_recovers(server, cluster, follower, code):
    server.refuse("watch=", code, 4)
    server.end_watches()
    cluster.create(config_map("b"))
    follower.sees({"a": {}, "b": {}})
