"""Plan, run and judge the cases of an audit."""
