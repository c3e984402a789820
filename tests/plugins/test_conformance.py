from iclr18cli.testing import conformance

test_adaptive_dropout = conformance("adaptive-dropout")
test_adr = conformance("adr")
test_alternating = conformance("alternating")
test_dgc = conformance("dgc")
test_fraternal = conformance("fraternal")
test_sngan = conformance("sngan")
test_wae = conformance("wae")
test_wrm = conformance("wrm")
