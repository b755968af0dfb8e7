"""The API of a cluster, by the official client against an HTTP emulator: normal life, then every fault."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from deadlines import within
from emulator.api_server import kubeconfig
from tiny_cluster import SHORT_CALLS, config_map

from opd.cluster.api import Cluster
from opd.cluster.connection import credentials
from opd.cluster.errors import (
    ConflictError,
    CredentialsError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NoAnswerError,
    NotFoundError,
    OtherNamespaceError,
    ServerFailedError,
    TooManyRequestsError,
    UnauthorisedError,
)
from opd.cluster.resources import CONFIG_MAP, DEPLOYMENT, NODE, POD, Resource, resource_of


@pytest.fixture
def page_url():
    """Of a server that answers anything with a page for people."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_):
            pass

    page = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=page.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{page.server_address[1]}"
    page.shutdown()
    page.server_close()


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resource, path",
    [
        (POD, "/api/v1/namespaces/a/pods/x"),
        (DEPLOYMENT, "/apis/apps/v1/namespaces/a/deployments/x"),
        (NODE, "/api/v1/nodes/x"),
        (
            Resource("networking.k8s.io/v1", "NetworkPolicy"),
            "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/x",
        ),
    ],
)
def test_paths(resource, path):
    assert resource.path("a", "x") == path


def test_a_name_cannot_leave_its_path():
    assert POD.path("a", "../../nodes") == "/api/v1/namespaces/a/pods/..%2F..%2Fnodes"
    assert POD.path("") == "/api/v1/pods"


def test_the_kind_of_a_manifest():
    assert resource_of(config_map()) == CONFIG_MAP
    assert resource_of(NODE.type_fields) == NODE and not resource_of(NODE.type_fields).namespaced


# --- normal life -----------------------------------------------------------------------------------------------------


def test_objects_are_created_read_changed_and_deleted(cluster):
    created = cluster.apply(config_map(batch_size="1"), "me")
    assert cluster.get(CONFIG_MAP, "settings")["data"] == {"batch_size": "1"}
    changed = cluster.apply(config_map(batch_size="2"), "me")
    assert int(changed["metadata"]["resourceVersion"]) > int(created["metadata"]["resourceVersion"])
    cluster.delete(CONFIG_MAP, "settings")
    with pytest.raises(NotFoundError, match="'settings' in namespace 'space'"):
        cluster.get(CONFIG_MAP, "settings")


def test_what_is_so_already_is_not_changed(cluster):
    created = cluster.apply(config_map(batch_size="1"), "me")
    assert cluster.apply(config_map(batch_size="1"), "me") == created


def test_a_dry_run_changes_nothing(cluster):
    cluster.apply(config_map("other"), "me", dry_run=True)
    cluster.apply(config_map(batch_size="1"), "me")
    assert cluster.apply(config_map(batch_size="2"), "me", dry_run=True)["data"] == {"batch_size": "2"}
    cluster.delete(CONFIG_MAP, "settings", dry_run=True)
    assert cluster.get(CONFIG_MAP, "settings")["data"] == {"batch_size": "1"}
    assert len(cluster.list(CONFIG_MAP)[0]) == 1


def test_fields_of_others_stay_and_those_that_a_manager_no_longer_sets_go(cluster):
    cluster.apply(config_map(a="1", b="1"), "me")
    cluster.apply(config_map(c="2"), "you")
    assert cluster.apply(config_map(a="3"), "me")["data"] == {"a": "3", "c": "2"}


def test_another_value_of_others_is_a_conflict_that_names_them_unless_forced(cluster):
    cluster.apply(config_map(a="1"), "you")
    with pytest.raises(ConflictError, match='conflict with "you": .data.a'):
        cluster.apply(config_map(a="2"), "me")
    assert cluster.apply(config_map(a="2"), "me", force=True)["data"] == {"a": "2"}
    with pytest.raises(ConflictError, match='conflict with "me"'):
        cluster.apply(config_map(a="1"), "you")


def test_an_object_that_is_gone_is_not_created_again_by_who_knew_it(cluster):
    known = cluster.apply(config_map(), "me")
    cluster.delete(CONFIG_MAP, "settings")
    manifest = config_map()
    manifest["metadata"]["uid"] = known["metadata"]["uid"]
    with pytest.raises(ConflictError, match="no object"):
        cluster.apply(manifest, "me", force=True)


def test_a_workload_is_scaled_by_its_subresource(server, cluster):
    labelled = {"name": "w", "namespace": "space"}
    manifest = {**DEPLOYMENT.type_fields, "metadata": labelled, "spec": {"replicas": 1, "paused": True}}
    cluster.apply(manifest, "deployer")
    with pytest.raises(ConflictError, match='"deployer": .spec.replicas'):
        cluster.scale(DEPLOYMENT, "w", 3, "me")
    assert cluster.scale(DEPLOYMENT, "w", 3, "me", force=True, dry_run=True)["spec"] == {"replicas": 3}
    assert cluster.get(DEPLOYMENT, "w")["spec"] == {"replicas": 1, "paused": True}
    cluster.scale(DEPLOYMENT, "w", 3, "me", force=True)
    assert cluster.get(DEPLOYMENT, "w")["spec"] == {"replicas": 3, "paused": True}
    assert server.requests[-2][1].startswith("/apis/apps/v1/namespaces/space/deployments/w/scale?")
    with pytest.raises(NotFoundError):
        cluster.scale(DEPLOYMENT, "absent", 3, "me")


def test_lists_are_selected_and_read_page_by_page(server, cluster, monkeypatch):
    for number in range(5):
        cluster.create(config_map(f"m{number}"))
    assert [found["metadata"]["name"] for found in cluster.list(CONFIG_MAP, "of=m3")[0]] == ["m3"]
    monkeypatch.setattr("opd.cluster.api.PAGE", 2)
    assert len(cluster.list(CONFIG_MAP)[0]) == 5
    assert sum("continue=" in path for _, path, _ in server.requests) == 2


def test_another_namespace_is_refused_before_any_call(server, cluster):
    manifest = config_map()
    manifest["metadata"]["namespace"] = "kube-system"
    for call in (cluster.create, cluster.replace, lambda each: cluster.apply(each, "me")):
        with pytest.raises(OtherNamespaceError, match="'kube-system'.*works in 'space'"):
            call(manifest)
    assert server.requests == []


# --- credentials -----------------------------------------------------------------------------------------------------


def test_a_renewed_token_is_read_after_a_401(server, tmp_path):
    server.token = "first"
    path = kubeconfig(server, tmp_path, "first")
    cluster = Cluster("space", lambda: credentials(str(path)), SHORT_CALLS)
    cluster.create(config_map())
    server.token = "second"
    (tmp_path / "token").write_text("second")
    assert cluster.get(CONFIG_MAP, "settings")
    codes = [token for _, _, token in server.requests]
    assert [token.split()[-1] for token in codes] == ["first", "first", "second"]


def test_refused_credentials_are_tried_twice(server, cluster):
    server.token = "another"
    with within(), pytest.raises(UnauthorisedError, match="log in again"):
        cluster.get(CONFIG_MAP, "settings")
    assert len(server.requests) == 2


def test_missing_credentials_name_the_remedy(tmp_path):
    with pytest.raises(CredentialsError, match="set KUBECONFIG"):
        Cluster("space", lambda: credentials(str(tmp_path / "none")))


def test_in_a_pod_the_service_account_is_used(monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(CredentialsError, match="service account cannot be used: .*token"):
        credentials()


def test_a_missing_context_is_named(server, tmp_path):
    path = kubeconfig(server, tmp_path)
    with pytest.raises(CredentialsError, match="elsewhere"):
        credentials(str(path), "elsewhere")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, error, remedy",
    [
        (403, ForbiddenError, "Role"),
        (404, NotFoundError, "deploy it"),
        (409, ConflictError, "read it again"),
        (410, GoneError, "list again"),
        (422, InvalidError, "correct the object"),
    ],
)
def test_a_refusal_has_its_error_and_its_remedy_and_is_not_repeated(server, cluster, code, error, remedy):
    server.refuse("GET .*configmaps", code, 99, message="no such luck")
    with within(), pytest.raises(error, match=f"no such luck.*{remedy}"):
        cluster.get(CONFIG_MAP, "settings")
    assert len(server.requests) == 1


def test_retry_after_is_respected(server, cluster):
    cluster.create(config_map())
    server.refuse("GET", 429, Retry_After="1")
    begin = time.monotonic()
    with within():
        cluster.get(CONFIG_MAP, "settings")
    assert time.monotonic() - begin > 0.95


def test_a_retry_after_beyond_the_longest_pause_is_a_refusal(server, cluster):
    server.refuse("POST", 429, 99, Retry_After="600")
    with within(), pytest.raises(TooManyRequestsError) as caught:
        cluster.create(config_map())
    assert caught.value.retry_after == 600
    assert len(server.requests) == 1


def test_endless_refusals_are_an_error_after_a_few_attempts(server, cluster):
    server.refuse("GET", 429, 99, Retry_After="0")
    with within(), pytest.raises(TooManyRequestsError):
        cluster.get(CONFIG_MAP, "settings")
    assert len(server.requests) == SHORT_CALLS.attempts


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "503", "drop", "slow"])
def test_transient_failures_are_retried(server, cluster, fault):
    cluster.create(config_map())
    if fault == "drop":
        server.drop("GET", 2)
    elif fault == "slow":
        server.fail("GET", lambda: time.sleep(0.8), 2)
    else:
        server.refuse("GET", int(fault), 2)
    with within():
        assert cluster.get(CONFIG_MAP, "settings")


@pytest.mark.parametrize("act, error", [("500", ServerFailedError), ("drop", NoAnswerError), ("slow", NoAnswerError)])
def test_permanent_failures_are_an_error_after_a_bounded_time(server, cluster, act, error):
    if act == "drop":
        server.drop("PUT|GET", 99)
    elif act == "slow":
        server.fail("PUT|GET", lambda: time.sleep(0.8), 99)
    else:
        server.refuse("PUT|GET", 500, 99, Retry_After="3600")
    with within(), pytest.raises(error):
        cluster.get(CONFIG_MAP, "settings")
    assert len(server.requests) == SHORT_CALLS.attempts


def test_a_creation_without_an_answer_is_not_repeated(server, cluster):
    server.drop("POST", 1)
    with pytest.raises(NoAnswerError, match="check that the API server runs"):
        cluster.create(config_map())
    assert len(server.requests) == 1


def test_an_unreachable_cluster_is_named(server, cluster):
    server.stop()
    try:
        with within(), pytest.raises(NoAnswerError, match=server.url):
            cluster.get(CONFIG_MAP, "settings")
    finally:
        server.start()


def test_a_pod_is_asked_through_the_api_server(server, cluster):
    server.proxy = lambda pod, port, path: "text"
    server.put({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "space"}, "spec": {}})
    assert cluster.ask_pod("p", 8080, "/stage") == "text"
    assert server.requests[-1][1] == "/api/v1/namespaces/space/pods/p%3A8080/proxy/stage"


def test_an_answer_that_is_no_json_is_named(page_url, tmp_path):
    class Page:
        url = page_url

    path = kubeconfig(Page, tmp_path)
    cluster = Cluster("space", lambda: credentials(str(path)), SHORT_CALLS)
    with within(), pytest.raises(ServerFailedError, match="no JSON.*address is that of an API server"):
        cluster.get(CONFIG_MAP, "settings")
