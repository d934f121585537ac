"""Makes the PyPI build of torch importable on a machine without CUDA.

The Linux wheel of torch is linked against a dozen CUDA libraries which come as wheels of their own, more than two gigabytes
that a CPU oracle never calls. This script reads from the installed torch which of those libraries are missing and which of their
functions torch refers to, and builds a stand-in for each, in which every function returns 100, cudaErrorNoDevice. So torch
loads, asks for its devices, hears that there are none, and works on the CPU. A library that is present is left alone.

    python cpu_torch.py FOLDER/torch/lib
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

STRINGS = ("cudaGetErrorString", "cudaGetErrorName", "cudnnGetErrorString", "nvrtcGetErrorString", "ncclGetErrorString",
           "ncclGetLastError", "cublasGetStatusString", "cusparseGetErrorString")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library):
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-dW", str(library)))


def undefined(library):
    """Yields (symbol, version or "") for each symbol that a library wants from another one."""
    for line in run("nm", "-D", "--undefined-only", str(library)).splitlines():
        name, _, version = line.split()[-1].partition("@")
        yield name, version.lstrip("@")


def version_owners(library):
    """Maps each version name a library asks for to the file it asks it of."""
    owners, file = {}, None
    for line in run("readelf", "-VW", str(library)).splitlines():
        if found := re.search(r"File: (\S+)", line):
            file = found.group(1)
        elif file and (found := re.search(r"Name: (\S+)\s+Flags", line)):
            owners[found.group(1)] = file
    return owners


def build(soname, symbols, folder):
    """Compiles one stand-in; symbols is {name: version}."""
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch, "stub.c")
        with source.open("w") as out:
            for name in sorted(symbols):
                if name in STRINGS:
                    out.write(f'const char *{name}(void) {{ return "no CUDA here"; }}\n')
                else:
                    out.write(f"long {name}(void) {{ return 100; }}\n")
        command = ["cc", "-shared", "-fPIC", "-O0", "-fno-builtin", "-w", f"-Wl,-soname,{soname}", "-o", str(folder / soname), str(source)]
        by_version = collections.defaultdict(list)
        for name, version in symbols.items():
            if version:
                by_version[version].append(name)
        if by_version:
            script = pathlib.Path(scratch, "stub.map")
            script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in by_version.items()))
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def main(folder):
    libraries = sorted(folder.glob("lib*.so"))
    defined = set()
    for library in libraries:
        defined.update(line.split()[-1].partition("@")[0] for line in run("nm", "-D", "--defined-only", str(library)).splitlines())
    missing = sorted({soname for library in libraries for soname in needed(library) if cuda_library(soname) and not present(soname, folder)})
    wanted = {soname: {} for soname in missing}
    for library in libraries:
        owners = version_owners(library)
        for name, version in undefined(library):
            owner = owners.get(version)
            if owner in wanted:
                wanted[owner][name] = version
            elif not version and name not in defined and cuda_symbol(name):
                loose = [soname for soname in missing if soname.startswith(prefix_of(name))]
                if loose:
                    wanted[loose[0]].setdefault(name, "")
    for soname, symbols in wanted.items():
        build(soname, symbols, folder)
    print(f"cpu_torch: {len(wanted)} stand-ins, {sum(map(len, wanted.values()))} functions")


def cuda_library(soname):
    return re.match(r"lib(cu|nv|nccl)", soname) is not None


def present(soname, folder):
    """Whether the wheel folders next to torch already hold the real library."""
    return any((folder.parent.parent / "nvidia").glob(f"**/{soname}")) and not (folder / soname).is_file()


def cuda_symbol(name):
    return re.match(r"(__)?(cu|nv|nccl)[A-Za-z]*", name) is not None


def prefix_of(name):
    """The start of the soname that a function without a version comes from."""
    for start, soname in (("nccl", "libnccl"), ("cuFile", "libcufile"), ("cusparseLt", "libcusparseLt"), ("nvshmem", "libnvshmem"),
                          ("nvrtc", "libnvrtc"), ("cudnn", "libcudnn"), ("cublasLt", "libcublasLt"), ("cublas", "libcublas"),
                          ("cusparse", "libcusparse"), ("cufft", "libcufft"), ("cusolver", "libcusolver"), ("cupti", "libcupti"),
                          ("cuda", "libcudart"), ("__cuda", "libcudart")):
        if name.startswith(start):
            return soname
    return "libcuda.so"


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
