#!/usr/bin/env python3
"""Jobs on a real Slurm with real agents, one case after another. Root, Debian.

    run.py --binary target/debug/millstream [--plugin libmillstream_spank.so] [CASE ...]
"""

import argparse
import signal
import sys
import time
import traceback

import cases
from rig import Failed, Rig


def show_logs(rig):
    print(rig.slurm("squeue", "-o", "%A %T %r %N", check=False).stdout, file=sys.stderr)
    for path in sorted((rig.dir / "log").iterdir()):
        lines = path.read_text(errors="replace").splitlines()[-25:]
        print(f"--- {path.name}", *lines, sep="\n", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--plugin")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running after a failure, until Enter")
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    known = {c.__name__: c for c in cases.ALL}
    if not set(options.cases) <= set(known):
        sys.exit(f"no such case; there are {', '.join(known)}")
    # Named twice is run twice: for figures.
    wanted = [known[name] for name in options.cases or known]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rig, failed = Rig(options.binary, options.plugin), []
    try:
        rig.start_millstream()
        rig.write_hooks()
        rig.configure()
        rig.start_slurm()
        for case in wanted:
            began = time.monotonic()
            try:
                rig.quiet()
                remark = case(rig) or ""
                print(f"ok    {case.__name__}  {time.monotonic() - began:.1f} s  {remark}", flush=True)
            except Exception as error:  # the other cases tell more about what is wrong
                failed.append(case.__name__)
                print(f"FAIL  {case.__name__}  {error}", flush=True)
                if not isinstance(error, Failed):
                    traceback.print_exc()
                show_logs(rig)
                if options.keep:
                    input("Enter goes on ")
    finally:
        rig.close()
    print(f"{len(wanted) - len(failed)} of {len(wanted)} cases passed" + "".join(f"; failed: {n}" for n in failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
