"""The processes of one job: how ranks meet, stop together, watch each other and end.

Not for: what they compute.
Others mostly use `process_group.start_distributed`, `interrupts.Interrupts` and
`agreement.StopAgreement`.
"""
