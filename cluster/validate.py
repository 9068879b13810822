"""Check cluster files without a cloud: `ray up` files, KubeRay resources, IAM policies, jobs' environments, image.

    python cluster/validate.py
    python cluster/validate.py my-aws.yaml
    python cluster/validate.py --crds kuberay/ray-operator/config/crd/bases cluster/kuberay/cluster.yaml

Prints one line per problem and exits with 1 if there is an error; remarks, such as nodes that cost money all the time,
do not change the exit code. It can't check if images, networks, roles and buckets exist, and if the cloud has such
machines available.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml
from checks import Remark, iam, image, kube, vm

HERE = Path(__file__).parent
_BY_FIELD = {
    "env_vars": kube.check_runtime_env,
    "groups": kube.check_alerts,
    "scrape_configs": kube.check_prometheus,
}
"""Small files, recognised by a field that the others do not have."""


def files() -> list[Path]:
    """List the files of this folder that can be checked."""
    return sorted([*HERE.rglob("*.yaml"), *(HERE / "iam").glob("*.json"), HERE / "Dockerfile"])


def check(path: Path, crds: Path | None = None) -> list[str]:
    """Check a file of a kind recognised by its content; return one line per error or `Remark`."""
    try:
        if path.suffix == ".json":
            return iam.check(path)
        if path.name.startswith("Dockerfile"):
            return image.check(path)
        content = next(iter(yaml.safe_load_all(path.read_text())), None)
        if isinstance(content, dict) and "apiVersion" in content:
            return kube.check(path, crds)
        for field, checks in _BY_FIELD.items():
            if isinstance(content, dict) and field in content:
                return list(checks(content))
        return vm.check(path)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        return [f"cannot be read: {' '.join(str(error).split())}"]
    except OSError as error:
        return [str(error)]
    except (KeyError, TypeError, AttributeError) as error:  # a part that the checks read is missing or of another type
        return [f"does not have the expected form: {type(error).__name__} {error}"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="files to check; default: all files of this folder")
    parser.add_argument("--crds", type=Path, help="folder of KubeRay's definitions (ray.io_rayclusters.yaml, ...)")
    given = parser.parse_args(arguments)
    errors = 0
    for path in given.files or files():
        problems = check(path, given.crds)
        wrong = sum(not isinstance(problem, Remark) for problem in problems)
        errors += wrong
        print(f"{path}: {f'{wrong} errors' if wrong else 'ok'}")
        for problem in problems:
            print(f"  {'remark' if isinstance(problem, Remark) else 'error'}: {problem}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
