"""The command line: hydraprune …"""
