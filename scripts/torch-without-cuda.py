#!/usr/bin/env python3
"""Makes the PyTorch wheel of PyPI importable without the gigabytes of CUDA packages that it asks for.

    pip install --no-deps torch && torch-without-cuda.py VENV/bin/python

PyTorch's Linux wheel is linked with NVIDIA's libraries; on a machine without a GPU they are loaded, and then never
used. This writes libraries of the same names whose every function does nothing, and gives the disk space of the GPU's
own code (a third of the wheel) back to the file system. Tensors on the CPU, data loaders and distributed checkpoints
are PyTorch's own, unchanged code; anything on a GPU does not work. For tests only.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

FOREIGN = re.compile(r"^lib(cu|nccl|nv)[A-Za-z_]*\.so[.0-9]*$")
FUNCTION = re.compile(r"^_{0,2}(cu|nv|nccl)[A-Za-z0-9_]+$")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wanted(libraries):
    """The missing libraries, what versions of which functions are expected in each, and functions without version."""
    needed, version_of, versioned, plain = set(), {}, {}, set()
    for library in libraries:
        names = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", str(library)))
        needed.update(name for name in names if FOREIGN.match(name))
        soname = ""
        for line in output("readelf", "-V", "-W", str(library)).splitlines():
            if found := re.search(r"File: (\S+)", line):
                soname = found[1]
            if (found := re.search(r"Name: (\S+)\s+Flags", line)) and FOREIGN.match(soname):
                version_of[found[1]] = soname
        for line in output("nm", "-D", "--undefined-only", str(library)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if version.lstrip("@") in version_of:
                versioned.setdefault(version.lstrip("@"), set()).add(name)
            elif FUNCTION.match(name):
                plain.add(name)
    by_library = {soname: {} for soname in needed}
    for version, names in versioned.items():
        by_library.setdefault(version_of[version], {})[version] = names
    return by_library, plain


def write(directory, soname, versions, functions):
    """A library whose functions do nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        source, script = pathlib.Path(scratch, "stub.s"), pathlib.Path(scratch, "stub.map")
        every = sorted(functions.union(*versions.values())) if versions else sorted(functions)
        lines = [".text"]
        for name in every:
            # 100 is "no device" to who asks the CUDA runtime for one; registering kernels at load must pass.
            answer = 100 if name.startswith("cuda") else 0
            lines += [f".globl {name}", f".type {name},@function", f"{name}:", f"movl ${answer}, %eax", "ret"]
        lines += ['.section .note.GNU-stack,"",@progbits', ""]
        source.write_text("\n".join(lines))
        parts = [f"{v} {{ global: {'; '.join(sorted(names))}; }};" for v, names in versions.items()]
        script.write_text("\n".join(parts) or "{ global: *; };")
        subprocess.run(
            ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{soname}", f"-Wl,--version-script,{script}"]
            + ["-o", str(directory / soname), str(source)],
            check=True,
        )


def release_gpu_code(library):
    """Makes a hole where the code for GPUs lies. Nothing reads it without the libraries that are replaced here."""
    for line in output("readelf", "-S", "-W", str(library)).splitlines():
        if found := re.search(r"\.nv_fatbin\s+PROGBITS\s+\S+\s+(\S+)\s+(\S+)", line):
            offset, length = (str(int(number, 16)) for number in found.groups())
            # A file system that cannot do it keeps the bytes.
            subprocess.run(["fallocate", "--punch-hole", "-o", offset, "-l", length, str(library)], check=False)


def main(python):
    where = output(python, "-c", "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
    directory = pathlib.Path(where.strip()) / "lib"
    libraries = [path for path in directory.glob("*.so*") if not FOREIGN.match(path.name)]
    libraries += [path for path in directory.glob("lib*torch*.so")]
    by_library, plain = wanted(set(libraries))
    # The driver's own library stays missing: that is how PyTorch knows that there is no GPU.
    by_library.pop("libcuda.so.1", None)
    for number, (soname, versions) in enumerate(sorted(by_library.items())):
        write(directory, soname, versions, plain if number == 0 else set())
    for library in directory.glob("libtorch_cuda*.so"):
        release_gpu_code(library)
    made = subprocess.run([python, "-c", "import torch; print(torch.__version__, torch.zeros(2).sum().item())"])
    sys.exit(made.returncode)


if __name__ == "__main__":
    main(sys.argv[1])
