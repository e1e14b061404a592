"""The rate limit for each upstream, and the fair queue of requests that wait for it.

Other packages use `queue.FairQueue` (acquire a slot, throttle after a 429), `queue.QueueState` (a snapshot)
and `registry.QueueRegistry` (one queue per upstream). `rate` is the limit of one process; `shared` and
`redis` let replicas share one limit.
"""
