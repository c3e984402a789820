from iclr18cli.testing import conformance

test_wrm = conformance("wrm")
