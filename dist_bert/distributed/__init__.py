"""The processes of one job: rendezvous, agreement on stops, mutual monitoring, exit.

Not for: computation.
Others mostly use `process_group.start_distributed`, `interrupts.Interrupts` and
`agreement.StopAgreement`.
"""
