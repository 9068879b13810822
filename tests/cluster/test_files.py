"""Every cluster file passes its checks, and a deliberately wrong field in each is caught."""

from pathlib import Path
from typing import Any

import pytest
import validate
import yaml
from checks import Remark, commands, cost, machines

from evilm.config.stages import STAGES, Sweep
from helpers.paths import ROOT

CLUSTER = ROOT / "cluster"
# By file: what stands there, what is put in its place, a part of what is said.
WRONG: dict[str, list[tuple[str, str, str]]] = {
    "aws.yaml": [
        ("max_workers: 12", "max_worker: 12", "max_workers is missing"),
        ("idle_timeout_s: 120", "idle_timeout: 120", "Ray's schema"),
        ("resources: {CPU: 16}", "resources: {CPU: 1.5}", "Ray's schema"),
        ("  image: 1", "  worker_image: 1", "Must provide a container"),
        ("  region: us-west-2", "  regoin: us-west-2", "provider.regoin"),
        ("InstanceType: c6i.4xlarge", "InstanceType: c6i.4xxlarge", "not known to EC2"),
        ("MarketType: spot", "MarketType: spott", "not known to EC2"),
        ("VolumeSize: 200", "VolumeSizes: 200", "Unknown parameter"),
        ("SecurityGroupIds: [", "SecurityGroupId: [", "Unknown parameter"),
        ("SecurityGroupIds: [sg-0123456789abcdef0]", "Monitoring: {Enabled: true}", "SecurityGroupIds is missing"),
        ("HttpTokens: required", "HttpTokens: optional", "HttpTokens must be required"),
        ("resources: {CPU: 0}", "resources: {CPU: 8}", "the head must offer no CPU"),
        ("module: evilm.cloud.SpotFirst", "module: evilm.cloud.Spot", "is not evilm.cloud.SpotFirst"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard-host"),
        ("RAY_AUTH_MODE=token #", "RAY_AUTH_MODE=disabled #", "RAY_AUTH_MODE=token is missing"),
        ("    --autoscaling-config=~/ray_bootstrap_config.yaml\n", "", "no node is ever started"),
        ("  max_workers: 8", "  max_workers: 80", "max_workers"),
        ("resources: {CPU: 8, GPU: 1}", "resources: {CPU: 8, GPU: 4}", "GPU 4 is more than the 1 of a g5.2xlarge"),
        ("resources: {CPU: 16}", "resources: {CPU: 64}", "CPU 64 is more than the 16 of a c6i.4xlarge"),
        ("VolumeSize: 200", "VolumeSize: 30", "VolumeSize 30 is too small"),
        ("us-west-2a,us", "eu-west-1a,us", "'eu-west-1a' is not in the region us-west-2"),
        ("NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=none", "would not see their GPUs"),
        ("until python", "python", "is not started again"),
        ("--cluster.gpus-per-worker 1\n", "--cluster.gpu-per-worker 1\n", "all: "),
        ("pipelines/all.py", "pipelines/everything.py", "command pipelines/everything.py does not exist"),
        ("torch.cuda.is_available()", "torch.cuda", "do not check that torch can use the GPU"),
        ("ray.__version__ == '2.60.0'", "ray.__version__ == '2.59.0'", "as in constraints.txt"),
        ("evilm.__version__ and ", "", "do not check evilm.__version__"),
        ("docker login", "docker info", "do not log in to the registry of 123456789012."),
    ],
    "gcp.yaml": [
        ("machineType: n2-highcpu-16", "machinetype: n2-highcpu-16", "machinetype is not a known field"),
        ("scheduling: {onHostMaintenance: TERMINATE}", "scheduling: [onHostMaintenance: TERMINATE]", "a mapping"),
        ("onHostMaintenance: TERMINATE}", "onHostMaintenance: MIGRATE}", "must be TERMINATE"),
        ("provisioningModel: SPOT", "provisioning: SPOT", "scheduling.provisioning"),
        ("project_id: my-project", "project: my-project", "provider.project"),
        ("{CPU: 16, memory", "{CPU: 64, memory", "CPU 64 is more than the 16 of a n2-highcpu-16"),
        ("{CPU: 8, GPU: 1,", "{CPU: 8, GPU: 4,", "GPU 4 is more than the 1 of a g2-standard-8"),
        ("diskSizeGb: 200", "diskSizeGb: 30", "diskSizeGb 30 is too small"),
        ("zone: us-central1-a", "zone: europe-west4-a", "'europe-west4-a' is not in the region us-central1"),
        ("until nvidia-smi;", "until true;", "do not wait until nvidia-smi runs"),
        ("auth configure-docker", "auth list", "do not log in"),
    ],
    "azure.yaml": [
        ("evictionPolicy: Delete", "eviction: Delete", "azure_arm_parameters.eviction"),
        ("osDiskSize: 256", "osDiskSize: large", "must be of type int"),
        ("location: westus2", "region: westus2", "provider.region"),
        ("ssh_user: ubuntu", "ssh_usr: ubuntu", "Ray"),
        ("{CPU: 16, memory", "{CPU: 64, memory", "CPU 64 is more than the 16 of a Standard_F16s_v2"),
        ("{CPU: 8, GPU: 1,", "{CPU: 8, GPU: 4,", "GPU 4 is more than the 1 of a Standard_NC8as_T4_v3"),
        ("osDiskSize: 256", "osDiskSize: 30", "osDiskSize 30 is too small"),
        ("availability_zone: auto", "availability_zone: westus2-1", "'westus2-1' is not auto"),
        ("sudo usermod -aG docker", "sudo usermod -aG sudo", "into the group docker"),
    ],
    "runtime_env.yaml": [
        ('"60"', "60", "must be a string"),
        ("env_vars:", "env_var: {}\nenv_vars:", "env_var is unknown"),
    ],
    "iam/head.json": [
        ('"ec2:RunInstances"', '"ec2:*"', "too wide"),
        ('"arn:aws:iam::ACCOUNT:role/CLUSTER-worker"', '"*"', "allowed on all resources"),
    ],
    "iam/launcher.json": [
        ('"Condition"', '"Conditions"', "unknown field"),
    ],
    "iam/worker.json": [
        ('"arn:aws:s3:::BUCKET/*"', '"*"', "allowed on all resources"),
    ],
    "iam/trust.json": [
        ('"ec2.amazonaws.com"', '"*"', "Principal allows everybody"),
    ],
    "kuberay/cluster.yaml": [
        ("rayVersion: 2.60.0", "rayVersion: 2.50.0", "is not 2.60.0, as in constraints.txt"),
        ("version: v2", "version: v1", "need autoscalerOptions.version v2"),
        ('num-cpus: "0"', 'num-cpus: "2"', "num-cpus must be"),
        ("terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 5", "60 or more"),
        ("authOptions: {mode: token}", "authOptions: {mode: disabled}", "is not token"),
        ("minReplicas: 0", "minReplicas: 9", "are not a valid range"),
        ("    redisAddress", "    backend: rocksdb\n    redisAddress", "has no redis settings"),
        ('limits: {cpu: "14"', 'limits: {cpu: "16"', "to equal values"),
        ("serviceAccountName: evilm-worker", "serviceAccountName: evilm-head", "accounts of their own"),
        ("ServiceAccountToken: false", "ServiceAccountToken: true", "automountServiceAccountToken must be false"),
        ("runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot must be true"),
        ("drop: [ALL]", "drop: [NET_RAW]", "autoscaler: capabilities.drop must contain ALL"),
        (", ephemeral-storage: 80Gi", "", "ephemeral-storage is missing"),
        ("tolerations: [*gpu]", "tolerations: []", "toleration of nvidia.com/gpu is missing"),
        ("name: ray-logs,", "name: logs,", "must be called ray-logs"),
    ],
    "kuberay/jobs/all.yaml": [
        ("  shutdownAfterJobFinishes: true\n  ttlSecondsAfterFinished: 600\n", "", "costs money"),
        ("backoffLimit: 3", "submissionMode: K8JobMode", "K8JobMode"),
        ("name: evilm-all", "name: Evilm_all", "the name must be"),
        ("--set benchmark.split=train", "--set benchmark.splits=train", "benchmark.splits"),
    ],
    "kuberay/redis.yaml": [
        ("labels: {app: evilm-redis}", "labels: {app: redis}", "does not select"),
        ("type: RuntimeDefault", "type: Unconfined", "seccompProfile.type must be"),
    ],
    "kuberay/accounts.yaml": [
        ("ServiceAccountToken: false", "ServiceAccountToken: true", "must be false"),
    ],
    "kuberay/network.yaml": [
        ("policyTypes: [Ingress]", "policyTypes: [Egress]", "everybody may connect"),
        ("  ingress:\n    - from:\n", "  ingress:\n    - to:\n", "admits everybody"),
    ],
    "kuberay/kustomization.yaml": [
        ("- accounts.yaml", "- account.yaml", "account.yaml does not exist"),
    ],
    "kuberay/jobs/kustomization.yaml": [
        ("../components/image", "../components/images", "has no kustomization.yaml"),
    ],
    "kuberay/components/image/kustomization.yaml": [
        ("newTag: 0.1.0", "newTag: latest", "needs newName and a newTag"),
    ],
    "kuberay/components/submitter/kustomization.yaml": [
        ("drop: [ALL]", "drop: []", "submitter: restricted"),
        ("kind: RayJob}", "kind: RayCluster}", "is not RayJob"),
    ],
    "kuberay/monitoring.yaml": [
        ("kind: PodMonitor", "kind: PodMonitr", "is not supported by these checks"),
        ('ray.io/is-ray-node: "yes"', "ray.io/cluster: evilm", "clusters that jobs create"),
        ("for: 15m", "for: long", "is not a time"),
    ],
    "alerts.yaml": [
        ("expr: max(", "expr: max((", "brackets"),
        ("annotations:", "annotation:", "annotation is unknown"),
    ],
    "prometheus.yaml": [
        ("prom_metrics_service", "prom_service", "Ray writes"),
    ],
    "Dockerfile": [
        ("ray:2.60.0-py311-cpu", "ray:2.60.0-py312-cpu", "other nodes can't join"),
        ("RUN test", "RAN test", "RAN is not an instruction"),
        ("ray.__version__ == '2.60.0'", "ray.__version__", "no RUN checks that ray"),
        ("cd / && ", "", "no RUN checks evilm.__version__"),
        ("install --require-hashes ", "install ", "nodes could differ"),
        ("pipelines pipelines", "pipeline pipeline", "pipeline: it does not exist"),
        ("tune tune", "docs docs", "docs: Dockerfile.dockerignore excludes it"),
        ("tune tune", "docs docs", "tune is not copied"),
    ],
}
# The same, of files that work, but cost more or do less than they could.
REMARKS: dict[str, list[tuple[str, str, str]]] = {
    "aws.yaml": [
        ("    min_workers: 0\n    max_workers: 8", "    min_workers: 2\n    max_workers: 8", "2 nodes cost money"),
        ("at 0.680 =  5.44", "at 0.680 =  6.44", "8 x 0.680 is not 6.44"),
        ("0.38 + 1.94 = 2.32", "0.38 + 1.94 = 3.32", "is not 3.32"),
        ("8 x c6i.4xlarge", "8 x c6i.2xlarge", "priced as c6i.2xlarge"),
        ("CPU: 192, GPU: 8", "CPU: 192, GPU: 4", "leaves GPUs of a g5.48xlarge unused"),
        ("pgrep -x raylet", "true", "do not end a machine whose set-up failed"),
        ("cache_stopped_nodes: false", "cache_stopped_nodes: true", "stopped nodes keep their disks"),
        ("      InstanceMarketOptions: {MarketType: spot}\n", "", "no GPU node type is spot"),
    ],
    "gcp.yaml": [("max_workers: 16", "max_workers: 9", "less than the groups' together")],
    "azure.yaml": [("        priority: Spot\n", "", "no GPU node type is spot")],
}
JOBS = sorted(
    set((CLUSTER / "kuberay" / "jobs").glob("*.yaml")) - {CLUSTER / "kuberay" / "jobs" / "kustomization.yaml"}
)
WRONG |= {f"kuberay/jobs/{path.name}": [(".py\n", ".py --nope\n", "--nope")] for path in JOBS if path.stem != "all"}
# The same, which only KubeRay's own definitions know.
WRONG_BY_CRD: dict[str, list[tuple[str, str, str]]] = {
    "kuberay/cluster.yaml": [
        ("maxReplicas: 8", "maxReplica: 8", "maxReplica"),
        ('num-cpus: "0"', "num-cpus: 0", "is not of type 'string'"),
        ("version: v2", "version: v3", "'v3' is not one of"),
        ("nodeSelector: {", "nodeSelectors: {", "nodeSelectors"),
        ("memory: 28Gi", "memory: 28GB", "28GB"),
    ],
    "kuberay/jobs/all.yaml": [
        ("ttlSecondsAfterFinished: 600", "ttlSecondsAfterFinish: 600", "ttlSecondsAfterFinish"),
    ],
    "kuberay/redis.yaml": [
        ("volumeMounts:", "volumeMount:", "volumeMount"),
    ],
    "kuberay/jobs/pretrain.yaml": [
        ("runtimeEnvYAML", "runtimeEnvYaml", "runtimeEnvYaml"),
    ],
}


def _cases(wrong: dict[str, list[tuple[str, str, str]]]) -> list[Any]:
    entries = [(name, *entry) for name, listed in wrong.items() for entry in listed]
    return [pytest.param(*entry, id=f"{entry[0]}-{entry[3]}") for entry in entries]


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a token file, whose mode is checked."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def crds(shared_data: Path) -> Path:
    return shared_data / "kuberay"


def _broken(tmp_path: Path, name: str, old: str, new: str) -> Path:
    text = (CLUSTER / name).read_text()
    assert old in text, f"{name} has no {old!r}"
    path = tmp_path / Path(name).name
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("path", validate.files(), ids=lambda path: str(path.relative_to(CLUSTER)))
def test_every_cluster_file_is_valid(path: Path) -> None:
    assert validate.check(path) == []


@pytest.mark.parametrize(("name", "old", "new", "said"), _cases(WRONG))
def test_wrong_field_is_reported(name: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    problems = validate.check(_broken(tmp_path, name, old, new))
    assert any(said in problem for problem in problems if not isinstance(problem, Remark)), problems
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize(("name", "old", "new", "said"), _cases(REMARKS))
def test_costly_field_is_remarked_without_an_error(
    name: str, old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate.main([str(_broken(tmp_path, name, old, new))]) == 0
    assert any(line.startswith("  remark: ") and said in line for line in capsys.readouterr().out.splitlines())


def test_token_that_others_can_read_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert validate.check(CLUSTER / "aws.yaml") == [f"{token} can be read by others: chmod 600 {token}"]
    token.chmod(0o600)
    assert validate.check(CLUSTER / "aws.yaml") == []


def test_sizes_of_machines_are_those_that_ec2_describes() -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    checked = 0
    for size, described in INSTANCE_TYPES.items():
        cpus, gpus = machines.size_of("aws", size)
        if cpus is not None:
            checked += 1
            assert cpus == described["VCpuInfo"]["DefaultVCpus"], size
        if gpus is not None:
            listed = described.get("GpuInfo", {}).get("Gpus", [])
            assert gpus == sum(each["Count"] for each in listed if each["Manufacturer"] == "NVIDIA"), size
    assert checked > 300


def test_every_file_has_a_wrong_field_case() -> None:
    assert {str(path.relative_to(CLUSTER)) for path in validate.files()} == set(WRONG)


def test_kuberay_files_pass_kuberays_own_schemas(crds: Path) -> None:
    for path in sorted((CLUSTER / "kuberay").rglob("*.yaml")):
        assert validate.check(path, crds) == [], path


@pytest.mark.parametrize(("name", "old", "new", "said"), _cases(WRONG_BY_CRD))
def test_kuberays_schemas_report_a_wrong_field(
    name: str, old: str, new: str, said: str, tmp_path: Path, crds: Path
) -> None:
    problems = validate.check(_broken(tmp_path, name, old, new), crds)
    assert any(said in problem for problem in problems), problems


def test_every_command_has_a_job_file() -> None:
    other_spaces = {name for name, stage in STAGES.items() if issubclass(stage, Sweep)} - {"sweep"}
    files = {path.stem: path for path in JOBS}
    assert set(files) == set(STAGES) - other_spaces
    for stage, path in files.items():
        entrypoint = yaml.safe_load(path.read_text())["spec"]["entrypoint"]
        assert [place for place, _ in commands.commands_in(entrypoint)] == [f"{STAGES[stage].folder}/{stage}"]
        assert yaml.safe_load(path.read_text())["metadata"]["labels"] == {"evilm/job": stage.replace("_", "-")}


def test_job_cluster_equals_the_permanent_one_without_redis() -> None:
    standing = yaml.safe_load((CLUSTER / "kuberay" / "cluster.yaml").read_text())["spec"]
    own = yaml.safe_load((CLUSTER / "kuberay" / "jobs" / "all.yaml").read_text())["spec"]["rayClusterSpec"]
    standing.pop("gcsFaultToleranceOptions")
    assert own == standing


def test_both_alert_files_are_equal() -> None:
    alone = yaml.safe_load((CLUSTER / "alerts.yaml").read_text())
    *_, rule = yaml.safe_load_all((CLUSTER / "kuberay" / "monitoring.yaml").read_text())
    assert rule["spec"] == alone


def test_validator_exit_code_reports_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = _broken(tmp_path, "aws.yaml", "max_workers: 12", "max_workers: none")
    assert validate.main([str(CLUSTER / "aws.yaml")]) == 0
    assert validate.main([str(broken)]) == 1
    assert validate.main([str(tmp_path / "nowhere.yaml")]) == 1
    assert "ok" in capsys.readouterr().out


def test_missing_costs_are_reported() -> None:
    types = {"head": {"node_config": {"InstanceType": "m5.large"}}}
    assert cost.check_cost("nothing", types, "head") == ["cost: head is not counted"]
    assert cost.check_cost("#   head  1 x m5.large  at 0.10 = 0.10", types, "head") == []


@pytest.mark.parametrize("cloud", ["gcp", "azure"])
def test_worker_nodes_name_their_memory_where_ray_does_not_look_it_up(cloud: str) -> None:
    types = yaml.safe_load((ROOT / "cluster" / f"{cloud}.yaml").read_text())["available_node_types"]
    workers = [each["resources"] for each in types.values() if each["resources"]["CPU"]]
    assert len(workers) >= 2
    assert all(resources["memory"] > 8 << 30 for resources in workers), "else tasks that ask for memory never start"
