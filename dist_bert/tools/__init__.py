"""What engineers run around a job: plan, benchmark, doctor, report, quickstart, speed run.

Not for: anything that a run itself needs; nothing imports this package but scripts.
Each folder has one entry: `plan.plan`, `doctor.doctor`, `report.page`, `benchmark.training`,
`speedrun.run`.
"""
