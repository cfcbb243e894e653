import argparse, sys
from benchmarks.human_study import serve, simulate
p = argparse.ArgumentParser(); c = p.add_subparsers(dest="command")
for m in (serve, simulate): m.add_arguments(c.add_parser(m.__name__.rpartition(".")[2]))
o = p.parse_args(); sys.exit({"serve": serve, "simulate": simulate}[o.command].run(o))
