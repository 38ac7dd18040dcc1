"""What the conserver can do, measured on real processes and a real server: `make bench`.

Each scenario is a function that takes a Plan and gives Tables; `SCENARIOS` in `__main__` has them all. Several runs of
each case, in turns, so that what else the machine does hits all cases alike; medians with their spread.
"""
