from nni_autorecon.cli.stages import trial

trial("search")
