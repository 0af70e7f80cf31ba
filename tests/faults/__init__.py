"""The proof that a run survives anything: processes that are killed, cut off and lied to, and what they leave.

`setups` says what is trained, `children` starts it, `entry` is what such a process does before it trains (holding
still, filling a disk, planting a bug), `runs` brings a run to its end and compares it with one that was left alone,
`disk` is a disk that loses its power, and `damage` what happens to files.
"""
