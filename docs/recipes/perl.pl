#!/usr/bin/perl
# Usage: GATEWAY_KEY=… perl perl.pl FILE      (needs libwww-perl)
use strict;
use warnings;
use utf8;
use open qw(:std :encoding(UTF-8));
use File::Basename qw(basename);
use HTTP::Request::Common qw(GET POST PUT);
use JSON::PP qw(decode_json encode_json);
use LWP::UserAgent;

my $url = $ENV{GATEWAY_URL} // 'http://localhost:8080';
my $gateway = LWP::UserAgent->new(timeout => 120);
$gateway->default_header('X-Cfproxy-Key' => $ENV{GATEWAY_KEY}) if $ENV{GATEWAY_KEY};

sub call {
    my ($request) = @_;
    my $answer = $gateway->request($request);
    return decode_json($answer->content) if $answer->is_success;
    my $who = ($answer->header('Proxy-Status') // '') =~ /^cfproxy/ ? 'cfproxy' : 'the API';
    die "$who answered " . $answer->code . ': ' . $answer->decoded_content . "\n";
}

sub json {
    my ($data) = @_;
    return ('Content-Type' => 'application/json', Content => encode_json($data));
}

# Pages are numbered from 1; a page that is not full is the last one.
sub list_jobs {
    my ($page_size, @jobs) = (25);
    for (my $number = 1; ; $number++) {
        my $page = call(GET "$url/v1/jobs?pageNumber=$number&pageSize=$page_size")->{pageData};
        push @jobs, @$page;
        return @jobs if @$page < $page_size;
    }
}

# Ask the API for an upload URL; send the file there without the key, piece by piece.
sub upload {
    my ($path) = @_;
    my $slot = call(POST "$url/v1/assets/get-presigned-url", json({ fileName => basename($path) }));
    open my $file, '<:raw', $path or die "$path: $!\n";
    my $request = PUT $slot->{url};
    $request->header('Content-Length' => -s $path);
    $request->content(sub { read($file, my $piece, 65536); return $piece });
    my $answer = LWP::UserAgent->new->request($request);
    die 'the object store answered ' . $answer->status_line . "\n" unless $answer->is_success;
}

my @jobs = list_jobs();
print scalar(@jobs), " jobs\n";

my $job = call(GET "$url/v1/jobs/$jobs[0]{id}");
print "$job->{code}: $job->{name}\n";

my $changed = call(PUT "$url/v1/jobs/$job->{id}", json({ name => "$job->{name} é" }));
print "renamed to $changed->{name}\n";

upload($ARGV[0]);
print 'uploaded ', basename($ARGV[0]), "\n";

eval { call(GET "$url/v1/jobs/00000000-0000-4000-8000-000000000000"); 1 } or print $@, "no such job\n";
