"""In the programs and kernels that tests start, baselines are tuned on one weight, in few iterations, and networks
compute in float32 on every processor.

Python imports this at its start where PYTHONPATH has this folder: conftest.py sees to that. Such tests are about runs,
reports and notebooks; what tuning finds is tested in test_classical.py, test_coils.py and test_cine.py.
"""

import functools
import importlib.util
import sys


def shorten(name, namespace):
    """Change the baselines of a part of mri_parts, {name: value}."""
    if name == "methods":
        table = namespace["CLASSICAL"]
        for method, (function, weights) in table.items():
            few = functools.partial(function, iterations=2 if method == "low_rank" else 40)
            table[method] = (few, weights[len(weights) // 2 :][:1])
        namespace["bfloat16_is_fast"] = lambda: False
    elif name == "coils":
        table = namespace["PARALLEL"]
        table.update({method: (function, weights[2:3]) for method, (function, weights) in table.items()})
    else:
        namespace["TEMPORAL_TV_WEIGHTS"] = namespace["TEMPORAL_TV_WEIGHTS"][1:2]


class Shortened:
    """Finds these three parts as Python does, and changes them once they are loaded."""

    PARTS = ("methods", "coils", "cine")

    def find_spec(self, fullname, path=None, target=None):
        package, _, part = fullname.partition(".")
        if package != "mri_parts" or part not in self.PARTS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def load_and_shorten(module):
            load(module)
            shorten(part, vars(module))

        spec.loader.exec_module = load_and_shorten
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, Shortened())
