"""What deploy/ gives to other programs: manifests, rendered by kubectl and held to Kubernetes' schemas, and the SBOM, read by spdx-tools.

The packages are in .venv-deploy (requirements-deploy.txt); manifests are read by a program there that prints JSON."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
OVERLAYS = ["cpu", "gpu", "mig"]
VERSIONS = ["1.29", "1.32", "1.36"]

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-deploy: tests/interop/venv deploy")

SPDX = """
import sys
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
document = parse_file(sys.argv[1])
for message in validate_full_spdx_document(document):
    print(message.validation_message, message.context)
print(len(document.packages), "packages")
"""


def python(*words, data=None):
    return subprocess.run([PYTHON, *words], input=data, capture_output=True, text=True, timeout=120)


def render(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text):
    done = python("-c", "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))", data=text)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    text = render(DEPLOY / "kubernetes" / "overlays" / request.param)
    return request.param, text, {item["kind"]: item for item in objects(text)}


def container(kinds):
    return kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_accept_the_manifests(overlay, version, tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(overlay[1])
    done = python("-m", "kubernetes_validate", "--strict", "-k", version, path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("INFO") == len(overlay[2])
    path.write_text(overlay[1].replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: 7"))
    assert python("-m", "kubernetes_validate", "--strict", "-k", version, path).returncode != 0


def test_everything_is_there(overlay):
    assert set(overlay[2]) == {"Namespace", "ConfigMap", "Service", "PersistentVolumeClaim", "Deployment", "PodDisruptionBudget",
                               "NetworkPolicy"}
    for kind, item in overlay[2].items():
        assert kind == "Namespace" or item["metadata"]["namespace"] == "quantd", kind


def test_one_pod_writes_the_volume(overlay):
    spec = overlay[2]["Deployment"]["spec"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    assert overlay[2]["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    mounts = {mount["mountPath"]: mount for mount in container(overlay[2])["volumeMounts"]}
    assert [path for path, mount in mounts.items() if not mount.get("readOnly")] == ["/data"]


def test_the_pod_may_do_little(overlay):
    pod = overlay[2]["Deployment"]["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["runAsUser"] == context["fsGroup"] == int(re.search(r"^USER (\d+):", (DEPLOY / "Containerfile").read_text(), re.M).group(1))
    assert pod["automountServiceAccountToken"] is False
    assert container(overlay[2])["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                        "capabilities": {"drop": ["ALL"]}}


def test_the_pod_may_take_longer_than_the_drain(overlay):
    drain = int(overlay[2]["ConfigMap"]["data"]["QUANTD_DRAIN_SECONDS"])
    assert overlay[2]["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + 10


def test_probes_ask_what_the_daemon_answers(overlay):
    at = {name: container(overlay[2])[name + "Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in at.items()} == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    for probe in at.values():
        assert probe["scheme"] == "HTTPS" and probe["port"] == "https"
        assert probe["httpHeaders"] == [{"name": "Host", "value": "localhost"}]


def test_selectors_find_the_pod(overlay):
    labels = overlay[2]["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (overlay[2]["Service"]["spec"]["selector"], overlay[2]["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
                     overlay[2]["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"], overlay[2]["Deployment"]["spec"]["selector"]["matchLabels"]):
        assert selector and selector.items() <= labels
    assert overlay[2]["NetworkPolicy"]["spec"]["egress"] == []
    port = container(overlay[2])["ports"][0]
    assert overlay[2]["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert overlay[2]["ConfigMap"]["data"]["QUANTD_LISTEN"].endswith(":%d" % port["containerPort"])


def test_resources_and_devices(overlay):
    name, _, kinds = overlay
    resources = container(kinds)["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    devices = [key for key in resources["limits"] if key.startswith("nvidia.com/")]
    assert [re.sub(r"mig-.*", "mig", device) for device in devices] == {"cpu": [], "gpu": ["nvidia.com/gpu"], "mig": ["nvidia.com/mig"]}[name]
    assert kinds["ConfigMap"]["data"]["QUANTD_DEVICE"] == ("cpu" if name == "cpu" else "cuda:0")
    assert container(kinds)["image"].endswith("-cpu" if name == "cpu" else "-cuda")


def test_the_configuration_is_the_daemon_s(overlay):
    known = set(re.findall(r'^    (?:\[\w+\] = )?\{"([a-z-]+)", ', (ROOT / "daemon" / "config.c").read_text(), re.M))
    assert "data-dir" in known
    named = container(overlay[2])["envFrom"][0]["configMapRef"]["name"]
    assert named == overlay[2]["ConfigMap"]["metadata"]["name"] != "quantd"
    image = re.findall(r"QUANTD_[A-Z_]+(?==)", (DEPLOY / "Containerfile").read_text())
    for variable in [*overlay[2]["ConfigMap"]["data"], *image]:
        assert variable.removeprefix("QUANTD_").lower().replace("_", "-") in known


def test_compose_is_as_strict_as_the_manifests():
    (base,), (gpu,) = (objects((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose.gpu.yaml"))
    service = base["services"]["quantd"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert "USER %s\n" % service["user"] in (DEPLOY / "Containerfile").read_text()
    assert [volume.rpartition(":")[0] for volume in service["volumes"] if not volume.endswith(":ro")] == ["quantd-data"]
    drain = re.search(r'"drain-seconds", "N", .*?"(\d+)"', (ROOT / "daemon" / "config.c").read_text()).group(1)
    assert int(service["stop_grace_period"].rstrip("s")) >= int(drain) + 10
    known = set(re.findall(r'^    (?:\[\w+\] = )?\{"([a-z-]+)", ', (ROOT / "daemon" / "config.c").read_text(), re.M))
    for variable in [*service["environment"], *gpu["services"]["quantd"]["environment"]]:
        assert variable.removeprefix("QUANTD_").lower().replace("_", "-") in known
    mounts = dict(reversed(volume.removesuffix(":ro").rsplit(":", 1)) for volume in base["services"]["prometheus"]["volumes"])
    (scrape,), rules = (objects((DEPLOY / "prometheus.yml").read_text())[0][key] for key in ("scrape_configs", "rule_files"))
    for path in (*rules, scrape["authorization"]["credentials_file"], scrape["tls_config"]["ca_file"]):
        assert path in mounts
    assert scrape["static_configs"][0]["targets"] == ["quantd:8080"]


def test_monitoring_is_a_component(tmp_path):
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    path = tmp_path / "kubernetes" / "overlays" / "cpu" / "kustomization.yaml"
    path.write_text(path.read_text() + "components: [../../components/monitoring]\n")
    kinds = {item["kind"]: item for item in objects(render(path.parent))}
    (endpoint,) = kinds["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in kinds["Service"]["spec"]["ports"]]
    assert kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= kinds["Service"]["metadata"]["labels"].items()
    host = [row["replacement"] for row in endpoint["relabelings"] if row["targetLabel"] == "__address__"][0].partition(":")[0]
    assert host in kinds["ConfigMap"]["data"]["QUANTD_ALLOWED_HOST"].split(",")


def test_the_first_key_s_pod(overlay):
    path = DEPLOY / "kubernetes" / "first-key.yaml"
    done = python("-m", "kubernetes_validate", "--strict", "-k", VERSIONS[-1], path)
    assert done.returncode == 0, done.stdout + done.stderr
    (pod,) = objects(path.read_text())
    name, _, kinds = overlay
    deployment = kinds["Deployment"]["spec"]["template"]
    (term,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items(), "a block volume is on one node only"
    assert "labels" not in pod["metadata"], "the Service must not send requests to it"
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == deployment["spec"]["volumes"][0]["persistentVolumeClaim"]
    for key in ("runAsUser", "runAsGroup", "fsGroup"):
        assert pod["spec"]["securityContext"][key] == deployment["spec"]["securityContext"][key]
    if name == "cpu":
        assert pod["spec"]["containers"][0]["image"] == container(kinds)["image"]


def test_the_sbom_is_spdx(tmp_path):
    path = tmp_path / "sbom.spdx.json"
    toolkit = tmp_path / "cublas_api.h"
    toolkit.write_text("#define CUBLAS_VER_MAJOR 13\n#define CUBLAS_VER_MINOR 0\n#define CUBLAS_VER_PATCH 0\n#define CUBLAS_VER_BUILD 19\n")
    done = subprocess.run([DEPLOY / "sbom", "--cuda", toolkit, "libc6", "ca-certificates"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    path.write_text(done.stdout)
    assert python("-c", SPDX, path).stdout == "4 packages\n"
    versions = {package["name"]: package["versionInfo"] for package in json.loads(done.stdout)["packages"]}
    installed = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "libc6"], capture_output=True, text=True).stdout
    assert versions["libc6"] == installed and versions["libcublasLt"] == "13.0.0"
    path.write_text(done.stdout.replace('"SPDXRef-Package-libc6"', '"libc6"'))
    assert python("-c", SPDX, path).stdout != "4 packages\n"


@pytest.mark.parametrize("name", ["sbom.spdx.json", "sbom-cuda.spdx.json"])
def test_the_sbom_of_the_image(name):
    path = ROOT / "build-container" / name
    if not path.exists():
        pytest.skip("no image: deploy/container-test makes it, with --cuda that of CUDA too")
    done = python("-c", SPDX, path)
    assert re.fullmatch(r"\d\d+ packages\n", done.stdout), done.stdout + done.stderr
    assert ("libcublasLt" in path.read_text()) == ("cuda" in name)
