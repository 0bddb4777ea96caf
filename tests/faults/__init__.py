"""Kills the processes of a suite, and holds how it ends against a run that nothing disturbed.

`cells` names faults and moments, `traces` tells from files in which moment a training is, `processes` finds what is
struck, `ordeal` runs a suite and strikes it, `records` compares what MLflow holds at the end; `python -m tests.faults`,
behind `make soak`, does all of it.
"""
